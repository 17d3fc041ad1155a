"""Counting what a step of a deep model sends, where torch dispatches it. Called on every rank of the pool at once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from ijepa_ds.bench.traffic import Traffic, least_bytes
from ijepa_ds.zero import linear
from tests.dist import jobs

DEPTH, PREDICTOR_DEPTH = 8, 2
BLOCK = 12 * 48 * 48 + 13 * 48  # parameters of one block of the encoder


def count(stage: int, extra: dict[str, Any] | None = None, precision: str = "float32", own: bool = False) -> dict[str, Any]:
    """Calls and bytes by phase of the fourth step: ZeRO-3 has then learnt the order of the modules.

    Args:
        stage: of ZeRO.
        extra: of "zero_optimization".
        precision: of the networks.
        own: use DeepSpeed's own functions.
    """
    with linear.deepspeeds_own() if own else nullcontext():
        return _count(stage, extra, precision)


def _count(stage: int, extra: dict[str, Any] | None, precision: str) -> dict[str, Any]:
    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed

    initialise_distributed()
    world = dist.get_world_size()
    cfg = jobs.tiny_config(precision, model={"depth": DEPTH})
    engine, plan = jobs.make_engine(cfg, stage, world, extra)
    jobs.settle(engine, cfg, plan, 3)
    phases = {name: Traffic() for name in ("forward", "backward", "optimizer", "ema")}
    images, masks = jobs.batch(cfg, 3, dist.get_rank() * plan.micro_batch, plan.micro_batch)
    with phases["forward"]:
        output = engine.forward(images.to(engine.compute_dtype), masks)
    with phases["backward"]:
        engine.backward(output.loss)
    with phases["optimizer"]:
        engine.optimizer_step(1e-3, 0.1)
    with phases["ema"]:
        engine.ema.update(0.9)
    parts = engine.num_parameters["encoder"], engine.num_parameters["predictor"]
    return {
        "calls": {phase: dict(traffic.calls) for phase, traffic in phases.items()},
        "bytes": {phase: dict(traffic.bytes) for phase, traffic in phases.items()},
        "moved": sum(traffic.moved for traffic in phases.values()),
        "least": least_bytes(stage, *parts, 2 if precision == "bfloat16" else 4),
    }
