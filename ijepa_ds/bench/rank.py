"""What every rank of `ijepa-ds bench fit` does: build, train a few steps on real images, and tell what it took."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa_ds import train
from ijepa_ds.bench import memory
from ijepa_ds.bench.traffic import Traffic, least_bytes
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.data.augment import network_input
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.engine import (
    Engine,
    gather_objects,
    initialise_distributed,
    mean_over_ranks,
    shut_down_distributed,
    world_from_environment,
)
from ijepa_ds.masks import build_sampler
from ijepa_ds.schedules import Schedule

PHASES = ("forward", "backward", "optimizer", "ema")


class Phases:
    """Seconds and traffic of a step's phases."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.traffic = {phase: Traffic() for phase in PHASES}
        self.counting = False

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Any:
        """Time (or, in a step that counts, count) what happens inside."""
        self._wait()
        started = time.perf_counter()
        with self.traffic[phase] if self.counting else contextlib.nullcontext():
            yield
            self._wait()
        if not self.counting:
            self.seconds[phase] += time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, steps: int) -> dict[str, Any]:
    """Build and train; this rank's figures."""
    device = initialise_distributed()
    folder = open_source(cfg.data.source, ScanOptions(max_pixels=cfg.data.max_pixels))
    torch.ones(8, device=device).sum()
    before, _ = memory.resident_bytes()
    memory.reset_peak(device)
    started = time.perf_counter()
    engine = Engine(cfg, ds_config, device)
    figures: dict[str, Any] = {"seconds_to_start": time.perf_counter() - started, "resident_before": before}
    figures["resident_started"], figures["resident_peak_start"] = memory.resident_bytes()
    phases = Phases(device)
    figures["losses"], figures["norms"] = _steps(engine, cfg, plan, rank, folder, steps, phases)
    figures["resident_after"], figures["resident_peak"] = memory.resident_bytes()
    if device.type == "cuda":
        figures["cuda_peak"] = torch.cuda.max_memory_allocated(device)
    figures["live_bytes"] = memory.live_bytes()
    figures["seconds"] = {phase: seconds / max(1, steps - 1) for phase, seconds in phases.seconds.items()}
    figures["traffic"] = {
        phase: {"calls": dict(t.calls), "bytes": dict(t.bytes), "moved": t.moved} for phase, t in phases.traffic.items()
    }
    width = 2 if engine.compute_dtype == torch.bfloat16 else 4
    sizes = engine.num_parameters["encoder"], engine.num_parameters["predictor"]
    figures |= {
        "describe": engine.describe(),
        "stage": engine.stage,
        "parameters": engine.num_parameters,
        "state_bytes": memory.state_bytes(engine.stage, plan.world_size, *sizes, width),
        "least_moved": least_bytes(engine.stage, *sizes, width),
        "largest_block": memory.largest_block(engine.deepspeed.module),
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "loop_seconds": _published_loop(engine),
    }
    return figures


def _steps(
    engine: Engine, cfg: Config, plan: BatchPlan, rank: int, folder: ImageIndex, steps: int, phases: Phases
) -> tuple[list[float], list[float]]:
    schedule = Schedule.of(cfg, max(1, len(folder) // cfg.optimization.batch_size))
    sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
    batches = ImageBatches(
        cfg.data,
        folder,
        seed=cfg.run.seed,
        batch_size=cfg.optimization.batch_size,
        micro_batch=plan.micro_batch,
        rank=rank,
        world_size=plan.world_size,
        accumulation=plan.accumulation,
        start_step=0,
        device=engine.device,
    )
    losses, norms = [], []
    for step in range(steps):
        phases.counting = step == steps - 1  # the last: ZeRO-3 learns the order of the modules in the first two
        total = torch.zeros((), device=engine.device)
        for micro in range(plan.accumulation):
            position = (micro * plan.world_size + rank) * plan.micro_batch
            first = step * plan.batch_size + position  # global sample number
            images = network_input(next(batches), first, cfg.data, cfg.run.seed, engine.compute_dtype)
            masks = sampler.sample(step, position, plan.micro_batch, engine.device)
            with phases("forward"):
                output = engine.forward(images, masks)
            with phases("backward"):
                engine.backward(output.loss)
            total += output.loss.detach() / plan.accumulation
        del output
        with phases("optimizer"):
            applied = engine.optimizer_step(schedule.lr(step), schedule.weight_decay(step))
        with phases("ema"):
            if applied:
                engine.ema.update(schedule.momentum(step))
        losses.append(float(mean_over_ranks(total)))
        norms.append(engine.gradient_norm())
        if rank == 0:
            print(f"step {step + 1}: loss {losses[-1]:.6f}, gradient norm {norms[-1]:.4f}", flush=True)
    batches.close()
    return losses, norms


@torch.no_grad()
def _published_loop(engine: Engine, most: int = 150_000_000) -> float | None:
    """Seconds of the published update, one parameter after the other over the whole encoder; None where it is large."""
    if engine.num_parameters["encoder"] > most:
        return None
    shapes = [getattr(p, "ds_shape", p.shape) for p in engine.deepspeed.module.encoder.parameters()]
    targets: list[Tensor] = [torch.zeros(s, device=engine.device) for s in shapes]
    sources: list[Tensor] = [torch.ones(s, device=engine.device) for s in shapes]
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for target, source in zip(targets, sources, strict=True):
            target.mul_(0.999).add_((1.0 - 0.999) * source)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        best = min(best, time.perf_counter() - started)
    return best


def main(argv: list[str] | None = None) -> int:
    """`python -m ijepa_ds.bench.rank`, as `bench fit` starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--deepspeed_config", required=True, type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--local_rank", type=int, default=None)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args(argv)
    try:
        rank, _, world_size = world_from_environment()
        figures = measure(*train.prepare(arguments, world_size), rank, arguments.steps)
    except (ValueError, OSError) as error:
        print(f"\nijepa-ds bench fit cannot run this:\n{error}\n", file=sys.stderr, flush=True)
        return train.USER_ERROR
    every = gather_objects(figures)
    if rank == 0:
        arguments.out.write_text(json.dumps(every))
    shut_down_distributed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
