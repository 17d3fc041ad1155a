"""What every rank of `ijepa-ds bench fit` does: build the model, train a few steps on real images, report memory and time."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.bench import memory
from ijepa_ds.bench.steps import Phases, Steps
from ijepa_ds.bench.traffic import least_bytes
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.distributed.world import initialise_distributed, mean_over_ranks
from ijepa_ds.training.engine import Engine


def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, steps: int) -> dict[str, Any]:
    """Build and train; return this rank's figures."""
    device = initialise_distributed()
    folder = open_source(cfg.data.source, ScanOptions.of(cfg.data))
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
        "largest_block": memory.largest_block(engine.module),
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "loop_seconds": _published_loop(engine),
    }
    return figures


def _train(steps: Steps, count: int, rank: int, phases: Phases) -> tuple[list[float], list[float]]:
    losses, norms = [], []
    for step in range(count):
        phases.counting = step == count - 1  # the last step: ZeRO-3 records the order of modules in the first two
        losses.append(float(mean_over_ranks(steps.step())))
        norms.append(steps.engine.gradient_norm())
        if rank == 0:
            print(f"step {step + 1}: loss {losses[-1]:.6f}, gradient norm {norms[-1]:.4f}", flush=True)
    steps.close()
    return losses, norms


@torch.no_grad()
def _published_loop(engine: Engine, most: int = 150_000_000) -> float | None:
    """Seconds of the published EMA update, a loop over all encoder parameters; None for large encoders."""
    if engine.num_parameters["encoder"] > most:
        return None
    shapes = engine.ema.layout.shapes.values()
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
