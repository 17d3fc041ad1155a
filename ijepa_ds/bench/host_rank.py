"""One measurement of `ijepa-ds bench host`: rank 0 of a process group of which no other rank exists.

Processor time of the parts of a step; then function calls of one step, and collectives of another.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.arguments import add_out, add_run
from ijepa_ds.bench.host_hooks import hook_seconds
from ijepa_ds.bench.record import machine, record
from ijepa_ds.bench.traffic import Traffic
from ijepa_ds.config import Config, resolve_auto
from ijepa_ds.config.deepspeed_json import add_precision
from ijepa_ds.distributed.fake import backend_seconds, pretend_world
from ijepa_ds.distributed.world import initialise_distributed
from ijepa_ds.exits import USER_ERROR
from ijepa_ds.masks.sampler import Masks, build_sampler
from ijepa_ds.model import compiling, ijepa
from ijepa_ds.model.blocks import BLOCKS
from ijepa_ds.model.vit import initialise
from ijepa_ds.training import job
from ijepa_ds.training.engine import Engine, parameter_groups
from ijepa_ds.zero import linear

WAYS = ("plain", "fsdp2", "zero", "zero_deepspeed")
WARM = 4  # steps: ZeRO-3 records the order of the modules, a compiler compiles
# So narrow that arithmetic costs next to nothing; one image a rank. Depths, groups and options stay.
NARROW = (
    "model.width=16 model.heads=1 model.mlp_hidden=32 model.predictor.width=16 model.predictor.heads=1 model.init_from=null "
    "masks.truncation_group=1 optimization.max_micro_batch=1 data.source=no_images run.dir=no_run eval.every=0"
).split()


@dataclass(frozen=True, kw_only=True)
class Way:
    """The parts of a step in one way of training."""

    name: str
    forward: Callable[[Tensor, Masks], Tensor]  # images, masks -> loss
    backward: Callable[[Tensor], object]
    optimizer: Callable[[], object]
    ema: Callable[[], object]
    deepspeed: Any = None  # its engine


def zero(cfg: Config, ds_config: dict[str, Any], device: torch.device, name: str = "") -> Way:
    """A run's engine."""
    engine = Engine(cfg, ds_config, device)
    return Way(
        name=name or f"zero{engine.stage}",
        forward=lambda images, masks: engine.forward(images.to(engine.compute_dtype), masks).loss,
        backward=engine.backward,
        optimizer=lambda: engine.optimizer_step(1e-4, 0.05),
        ema=lambda: engine.ema.update(0.996),
        deepspeed=engine.deepspeed,
    )


def torch_alone(cfg: Config, device: torch.device, world: int, sharded: bool) -> Way:
    """The same networks in plain PyTorch, or under FSDP2 (`fully_shard` of every block, then of the rest)."""
    model = ijepa.build(cfg).to(device)
    initialise(model, cfg.run.seed, layer_scale=cfg.model.layer_scale)
    if compiling.is_compiled(cfg.model, device):
        compiling.compile_blocks(model)
    if sharded:
        _shard(model, device, world)
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=1e-4, fused=True)
    targets, sources = ([_local(p) for p in part.parameters()] for part in (model.target_encoder, model.encoder))

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Way(
        name="fsdp2" if sharded else "plain",
        forward=lambda images, masks: model(images, masks).loss,
        backward=lambda loss: loss.backward(),
        optimizer=update,
        ema=torch.no_grad()(lambda: torch._foreach_lerp_(targets, sources, 0.004)),
    )


def _shard(model: torch.nn.Module, device: torch.device, world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh, policy = init_device_mesh(device.type, (world,)), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for module in [*(block for block in model.modules() if isinstance(block, BLOCKS)), model]:
        fully_shard(module, mesh=mesh, mp_policy=policy)


def _local(parameter: Any) -> Tensor:
    return (parameter.to_local() if hasattr(parameter, "to_local") else parameter).detach()


class Clock:
    """Runs steps; processor seconds of their parts, of all threads of this process."""

    def __init__(self, way: Way, cfg: Config, device: torch.device) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self._way, self._device, self._done = way, device, 0
        self._sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
        self._images = torch.randn(1, cfg.model.channels, cfg.data.crop_size, cfg.data.crop_size, device=device)

    def step(self, around: Any = None) -> None:
        """One optimizer step inside `around`, a context manager; masks are not part of it."""
        way, times = self._way, [0.0] * 5
        masks = self._sampler.sample(self._done, 0, 1, self._device)
        with around or nullcontext():
            times[0] = time.process_time()
            loss = way.forward(self._images, masks)
            times[1] = time.process_time()
            way.backward(loss)
            times[2] = time.process_time()
            way.optimizer()
            times[3] = time.process_time()
            way.ema()
            times[4] = time.process_time()
        for part, begin, end in zip(("forward", "backward", "optimizer", "ema"), times, times[1:], strict=False):
            self.samples[part].append(end - begin)
        self.samples["step"].append(times[4] - times[0])
        self._done += 1


class Calls:
    """Counts calls of functions, in Python and into C, of this thread in a `with` block: a figure without noise."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Calls:
        """Start to count."""
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        sys.setprofile(None)

    def _event(self, _frame: Any, event: str, _argument: Any) -> None:
        self.count += event in ("call", "c_call")


def measure(cfg: Config, ds_config: dict[str, Any], way: str, world: int, steps: int) -> list[dict[str, Any]]:
    """Join a pretended world, build one way of training, run it; its records."""
    torch.set_num_threads(1)
    pretend_world(world)
    device = initialise_distributed()
    with linear.deepspeeds_own() if way == "zero_deepspeed" else nullcontext():
        began = time.process_time()
        if way.startswith("zero"):
            stage = ds_config.get("zero_optimization", {}).get("stage", 0)
            built = zero(cfg, ds_config, device, f"zero{stage}_deepspeed" if way == "zero_deepspeed" else "")
        else:
            built = torch_alone(cfg, device, world, way == "fsdp2")
        start = time.process_time() - began
        clock = Clock(built, cfg, device)
        for _ in range(WARM):
            clock.step()
        clock.samples.clear()
        for _ in range(steps):
            clock.step()
        samples = {part: list(values) for part, values in clock.samples.items()}
        hooks = hook_seconds(built.deepspeed.optimizer, clock.step, steps) if built.deepspeed else []
        calls, traffic = Calls(), Traffic()
        clock.step(calls)
        clock.step(traffic)
    config = {
        "model": cfg.model.name,
        "way": built.name,
        "ranks": world,
        "device": device.type,
        "compile": compiling.is_compiled(cfg.model, device),
    }
    name = f"host.{built.name}.{world}"
    return [
        *(record(f"{name}.{part}", "s", values, config) for part, values in samples.items()),
        *([record(f"{name}.hooks", "s", hooks, config)] if hooks else []),  # in forward, backward and optimizer
        record(f"{name}.backend", "s", [backend_seconds(traffic.calls)], config),  # of the step: not a real run's
        record(f"{name}.start", "s", [start], config),
        record(f"{name}.calls", "calls", [calls.count], config),
        record(f"{name}.collectives", "collectives", [sum(traffic.calls.values())], config, calls=dict(traffic.calls)),
        record(f"{name}.bytes", "bytes", [sum(traffic.bytes.values())], config),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Read the run, make it narrow, measure, write the records."""
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.bench.host_rank")
    parser.add_argument("way", choices=WAYS)
    add_run(parser)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    add_out(parser, "JSON file for the records")
    arguments = parser.parse_intermixed_args(argv)
    arguments.overrides += [*NARROW, f"optimization.batch_size={arguments.world}"]
    try:
        cfg, ds_config, _ = job.read(arguments, arguments.world, new_run=False)
        if cfg.model.precision == "auto":
            cfg, ds_config = resolve_auto(cfg, "bfloat16"), add_precision(ds_config, "bfloat16")
        records = measure(cfg, ds_config, arguments.way, arguments.world, arguments.steps)
    except (ValueError, OSError) as error:
        print(f"cannot run this:\n{error}", file=sys.stderr, flush=True)
        return USER_ERROR
    arguments.out.write_text(json.dumps({"machine": machine(), "records": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
