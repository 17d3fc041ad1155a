"""What every rank of `ijepa-ds bench comm` does: time collectives of several sizes, then count those of a step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.bench.record import machine, record
from ijepa_ds.bench.step_rank import WARM, RandomSteps
from ijepa_ds.bench.stopwatch import records_of, settings
from ijepa_ds.bench.traffic import Traffic
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.distributed.world import barrier

SIZES = (1 << 20, 1 << 24, 1 << 26)  # bytes of the whole tensor


def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, repeats: int) -> dict[str, Any]:
    """Records: seconds of collectives on the slowest rank, and bytes of a step."""
    running = RandomSteps(cfg, ds_config, plan, rank)
    engine, watch, config = running.engine, running.watch, settings(cfg, running.engine, plan)
    for _ in range(WARM):
        running.step(counts=False)
    with Traffic() as traffic:  # after ZeRO-3 has recorded the order of the modules
        running.step(counts=False)
    works = _collectives(plan.world_size, engine.device, engine.compute_dtype)
    for repeat in range(WARM + repeats):
        for name, work in works.items():
            barrier()
            with watch(name):
                work()
        watch.next(repeat >= WARM)
    records = records_of("comm", watch.slowest(), config)
    for name, calls in sorted(traffic.calls.items()):
        records.append(record(f"comm.step.{name}", "bytes", [traffic.bytes[name]], config, calls=calls))
    records.append(record("comm.step.moved", "bytes", [traffic.moved], config))
    return {"title": engine.describe(), "machine": machine(), "records": records}


def _collectives(world_size: int, device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """Name and size -> a function that runs the collective."""
    works: dict[str, Callable[[], Any]] = {}
    for size in SIZES:
        numel = size // dtype.itemsize // world_size * world_size
        whole: Tensor = torch.zeros(numel, device=device, dtype=dtype)
        share = whole[: numel // world_size].clone()
        label = f"{size >> 20}MiB"
        works[f"all_reduce.{label}"] = partial(torch.distributed.all_reduce, whole)
        works[f"all_gather.{label}"] = partial(torch.distributed.all_gather_into_tensor, whole, share)
        works[f"reduce_scatter.{label}"] = partial(torch.distributed.reduce_scatter_tensor, share, whole)
    return works
