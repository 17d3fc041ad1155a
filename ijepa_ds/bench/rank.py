"""What every rank of `ijepa-ds bench fit` does: build, train a few steps on real images, and tell what it took."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.bench import memory
from ijepa_ds.bench.traffic import Traffic, least_bytes
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.data.augment import network_input
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.distributed.world import (
    gather_objects,
    initialise_distributed,
    mean_over_ranks,
    shut_down_distributed,
    world_from_environment,
)
from ijepa_ds.exits import USER_ERROR
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.training import job
from ijepa_ds.training.engine import Engine

PHASES = ("forward", "backward", "optimizer", "ema")


class Phases:
    """Seconds and traffic of a step's phases.

    On a CPU the processor's seconds count beside those of the clock: other work on the machine does not stretch them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self.traffic = {phase: Traffic() for phase in PHASES}
        self.counting = False

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Any:
        """Time (or, in a step that counts, count) what happens inside."""
        self._wait()
        started, busy = time.perf_counter(), time.process_time()
        with self.traffic[phase] if self.counting else contextlib.nullcontext():
            yield
            self._wait()
        if not self.counting:
            self.seconds[phase] += time.perf_counter() - started
            self.processor[phase] += time.process_time() - busy

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
    figures["losses"], figures["norms"] = _train(Steps(engine, cfg, plan, rank, folder, phases), steps, rank, phases)
    figures["resident_after"], figures["resident_peak"] = memory.resident_bytes()
    if device.type == "cuda":
        figures["cuda_peak"] = torch.cuda.max_memory_allocated(device)
    figures["live_bytes"], figures["held"] = memory.live_bytes(), memory.held_bytes(engine)
    figures["seconds"] = {phase: seconds / max(1, steps - 1) for phase, seconds in phases.seconds.items()}
    if device.type == "cpu":
        figures["processor"] = {phase: seconds / max(1, steps - 1) for phase, seconds in phases.processor.items()}
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


class Steps:
    """Real optimizer steps on real images, one at a time."""

    def __init__(
        self, engine: Engine, cfg: Config, plan: BatchPlan, rank: int, folder: ImageIndex, phases: Phases | None = None
    ) -> None:
        """Open the images; `phases` times the parts of a step."""
        self.engine, self.done = engine, 0
        self._cfg, self._plan, self._rank = cfg, plan, rank
        self._phases: Callable[[str], AbstractContextManager[Any]] = phases or (lambda _: contextlib.nullcontext())
        self._schedule = Schedule.of(cfg, max(1, len(folder) // cfg.optimization.batch_size))
        self._sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
        self._batches = ImageBatches(
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

    def step(self) -> Tensor:
        """One more; this rank's loss, a scalar on the device."""
        engine, plan, step = self.engine, self._plan, self.done
        total = torch.zeros((), device=engine.device)
        for micro in range(plan.accumulation):
            position = (micro * plan.world_size + self._rank) * plan.micro_batch
            first = step * plan.batch_size + position  # global sample number
            images = network_input(next(self._batches), first, self._cfg.data, self._cfg.run.seed, engine.compute_dtype)
            masks = self._sampler.sample(step, position, plan.micro_batch, engine.device)
            with self._phases("forward"):
                output = engine.forward(images, masks)
            with self._phases("backward"):
                engine.backward(output.loss)
            total += output.loss.detach() / plan.accumulation
        del output
        with self._phases("optimizer"):
            applied = engine.optimizer_step(self._schedule.lr(step), self._schedule.weight_decay(step))
        with self._phases("ema"):
            if applied:
                engine.ema.update(self._schedule.momentum(step))
        self.done += 1
        return total

    def close(self) -> None:
        """End the decoding thread."""
        self._batches.close()


def _train(steps: Steps, count: int, rank: int, phases: Phases) -> tuple[list[float], list[float]]:
    losses, norms = [], []
    for step in range(count):
        phases.counting = step == count - 1  # the last: ZeRO-3 learns the order of the modules in the first two
        losses.append(float(mean_over_ranks(steps.step())))
        norms.append(steps.engine.gradient_norm())
        if rank == 0:
            print(f"step {step + 1}: loss {losses[-1]:.6f}, gradient norm {norms[-1]:.4f}", flush=True)
    steps.close()
    return losses, norms


@torch.no_grad()
def _published_loop(engine: Engine, most: int = 150_000_000) -> float | None:
    """Seconds of the published update, one parameter after the other over the whole encoder; None where it is large."""
    if engine.num_parameters["encoder"] > most:
        return None
    shapes = [getattr(p, "ds_shape", p.shape) for p in engine.deepspeed.module.encoder.parameters()]
    targets: list[Tensor] = [torch.zeros(s, device=engine.device) for s in shapes]
    sources: list[Tensor] = [torch.ones(s, device=engine.device) for s in shapes]
    best, clock = float("inf"), time.perf_counter if engine.device.type == "cuda" else time.process_time
    for _ in range(3):
        started = clock()
        for target, source in zip(targets, sources, strict=True):
            target.mul_(0.999).add_((1.0 - 0.999) * source)
        if engine.device.type == "cuda":
            torch.cuda.synchronize(engine.device)
        best = min(best, clock() - started)
    return best


def main(argv: list[str] | None = None) -> int:
    """`python -m ijepa_ds.bench.rank`, as `bench fit` starts it."""
    return run_rank(argv, "bench fit", measure)


def run_rank(argv: list[str] | None, verb: str, work: Callable[[Config, dict[str, Any], BatchPlan, int, int], Any]) -> int:
    """What each rank of a measurement runs: `work(cfg, ds_config, plan, rank, steps)`, its figures in rank order to a file."""
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
        figures = work(*job.read(arguments, world_size), rank, arguments.steps)
    except (ValueError, OSError) as error:
        print(f"\nijepa-ds {verb} cannot run this:\n{error}\n", file=sys.stderr, flush=True)
        return USER_ERROR
    every = gather_objects(figures)
    if rank == 0:
        arguments.out.write_text(json.dumps(every))
    shut_down_distributed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
