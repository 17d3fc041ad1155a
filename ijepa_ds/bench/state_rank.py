"""Ranks of `ijepa-ds bench state`: start at each ZeRO stage, make one step, measure the memory of the model state."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import replace
from typing import Any

import torch

from ijepa_ds.bench import memory
from ijepa_ds.bench.steps import Steps
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.distributed.world import barrier, initialise_distributed
from ijepa_ds.training.engine import Engine

STAGES = (0, 1, 2, 3)


def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, stages: int) -> dict[str, Any]:
    """The figures of this rank for every stage whose bit is set in `stages`."""
    device = initialise_distributed()
    images = open_source(cfg.data.source, ScanOptions.of(cfg.data))
    small = replace(cfg, model=replace(cfg.model, name="tiny", width=None, depth=2, heads=None, mlp_hidden=None))
    chosen = [stage for stage in STAGES if stages >> stage & 1]
    _stage(chosen[-1], small, ds_config, plan, rank, images, device)  # loads libraries and allocates their buffers
    found = {str(stage): _stage(stage, cfg, ds_config, plan, rank, images, device) for stage in chosen}
    return {"stages": found, "model": cfg.model.name}


def _stage(
    stage: int, cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, images: Any, device: torch.device
) -> dict[str, Any]:
    _give_back()
    before, _ = memory.resident_bytes()
    memory.reset_peak(device)
    spread = {**ds_config, "zero_optimization": {**ds_config["zero_optimization"], "stage": stage}}
    engine = Engine(cfg, spread, device)
    gc.collect()
    _, peak = memory.resident_bytes()
    steps = Steps(engine, cfg, plan, rank, images)
    steps.step()
    steps.close()
    width = 2 if engine.compute_dtype == torch.bfloat16 else 4
    sizes = engine.num_parameters["encoder"], engine.num_parameters["predictor"]
    figures = {
        "held": memory.held_bytes(engine),
        "formula": memory.state_bytes(stage, plan.world_size, *sizes, width),
        "published": memory.PUBLISHED * sum(sizes),
        "start_peak": peak - before,
        "block": width * memory.largest_block(engine.module),
    }
    if rank == 0:
        print(f"ZeRO-{stage}: {sum(figures['held'].values()) / 2**20:.0f} MiB of state", flush=True)
    engine.deepspeed.destroy()
    del engine, steps
    barrier()
    return figures


def _give_back() -> None:
    """Return freed memory to the system; training sets glibc to keep it."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
