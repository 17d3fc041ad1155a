"""Ranks of `ijepa-ds bench train`: run the training loop for some steps, then profile a few more.

Times are those that the run writes to TensorBoard at every step. Communication inside a part
(the backward pass) is measured by the profiler in extra steps, because profiling has overhead.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ijepa_ds.bench.record import machine, record
from ijepa_ds.bench.stopwatch import settings
from ijepa_ds.cluster.stop import StopRequests
from ijepa_ds.cluster.watch import Watch
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.distributed.exchange import host_barrier
from ijepa_ds.model.mfu import measured_peak
from ijepa_ds.telemetry.events import Scalars, read_scalars
from ijepa_ds.training import loop, start

WARM, PROFILED = 3, 2  # steps
_COLLECTIVES = ("gloo:", "nccl:", "c10d::")


class _EnoughError(Exception):
    """The requested steps are done."""


class _Steps(StopRequests):
    """Ends the loop after `count` steps and profiles the last ones; the loop reads `received` once per step."""

    def __init__(self, count: int) -> None:
        self.profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * torch.cuda.is_available())])
        self._asked, self._count = 0, count
        super().__init__()

    @property
    def received(self) -> int:  # type: ignore[override]
        """Always 0 (no signal); read between the backward pass and the optimizer."""
        self._asked += 1
        if self._asked == self._count + 1:
            self.profiler.start()
        if self._asked == self._count + 1 + PROFILED:
            self.profiler.stop()
            raise _EnoughError
        return 0

    @received.setter
    def received(self, value: int) -> None:
        pass


def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, steps: int) -> dict[str, Any]:
    """Measure the run's first steps; return rank 0's records."""
    cfg = replace(cfg, run=replace(cfg.run, checkpoint_every=1 << 40))  # never save
    stop = _Steps(WARM + steps)
    run = start.prepare(cfg, ds_config, plan, rank, Watch())
    needed = WARM + steps + PROFILED + 1
    if run.schedule.total_steps < needed:
        total = run.schedule.total_steps
        raise ValueError(f"the run has {total} steps, --steps {steps} needs {needed}: raise optimization.steps")
    engine = run.engine
    peaks = [measured_peak(engine.device, engine.compute_dtype) for _ in range(5)]
    try:
        loop.train(run, stop)
    except _EnoughError:
        pass
    host_barrier()  # all ranks have left the loop
    if run.lock:
        run.lock.close()
    if rank != 0:
        return {}
    config = settings(cfg, engine, plan)
    records = _budget(read_scalars(cfg.run.dir), steps, config)
    records.append(record("train.product_rate", "FLOP/s", peaks, config))
    if plan.world_size > 1:
        records.append(record("train.profiled_collectives", "s", [_collective_seconds(stop.profiler) / PROFILED], config))
    trace = os.environ.get("IJEPA_DS_BENCH_TRACE")
    if trace:
        stop.profiler.export_chrome_trace(trace)
        print(f"trace of {PROFILED} steps: {trace}", flush=True)
    loader = f"{len(run.folder):,} images from {cfg.data.source}"
    return {"title": f"{engine.describe()}; {loader}; rank 0's time", "machine": machine(), "records": records}


def _budget(scalars: Scalars, steps: int, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds and shares of every part of the counted steps, from the run's TensorBoard points."""

    def counted(tag: str) -> list[float]:
        number, value = scalars[tag]
        return [float(v) for n, v in zip(number, value, strict=True) if WARM < n <= WARM + steps]

    whole = counted("speed/seconds_per_step")
    records = [record("train.step", "s", whole, config)]
    for tag in sorted(scalars):
        if tag.startswith("time/") and len(counted(tag)) == len(whole):
            shares = counted(tag)
            seconds = [share * step for share, step in zip(shares, whole, strict=True)]
            records.append(record(f"train.{tag[5:]}", "s", seconds, config, share=sum(seconds) / sum(whole)))
    known = [tag for tag in ("mfu", "matmul_share") if f"speed/{tag}" in scalars]
    records += [
        record("train.images", "images/s", counted("speed/images_per_second"), config),
        *(record(f"train.{tag}", "share", counted(f"speed/{tag}"), config) for tag in known),
        record("train.peak_memory", "bytes", [gib * 2**30 for gib in counted("memory/peak_gib")[-1:]], config),
    ]
    return records


def _collective_seconds(profiler: profile) -> float:
    """Seconds of the profiled steps with at least one collective running, possibly overlapped with computation."""
    spans = []
    for event in profiler.events() or ():
        if event.name.startswith(_COLLECTIVES):
            spans.append((event.time_range.start, event.time_range.end))
    total, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total / 1e6
