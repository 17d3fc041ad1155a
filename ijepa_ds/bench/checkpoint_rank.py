"""Ranks of `ijepa-ds bench checkpoint`: train, and alternate between background and blocking saves."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ijepa_ds.bench.steps import Steps
from ijepa_ds.checkpoint.saver import Saver
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.distributed.exchange import broadcast_object, max_over_ranks
from ijepa_ds.distributed.world import barrier, initialise_distributed
from ijepa_ds.durable import save_tensors
from ijepa_ds.training.engine import Engine

_WARM, _QUIET = 2, 2  # warm-up steps (ZeRO-3 records its trace), and timed steps between saves
_RAW = 1 << 30  # maximum bytes written to measure the disk's throughput


def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, saves: int) -> dict[str, Any]:
    """Train and save `saves` times each way in a temporary folder in `run.dir`; return this rank's figures."""
    device = initialise_distributed()
    images = open_source(cfg.data.source, ScanOptions.of(cfg.data))
    engine = Engine(cfg, ds_config, device)
    steps = Steps(engine, cfg, plan, rank, images)
    Path(cfg.run.dir).mkdir(parents=True, exist_ok=True)
    place = Path(broadcast_object(tempfile.mkdtemp(prefix="bench-", dir=cfg.run.dir) if rank == 0 else ""))
    try:
        saver = Saver(engine.layout, engine.ema, place, every=1, keep_last=1)
        figures = _turns(steps, saver, device, saves)
        barrier()
        manifest = json.loads(next(place.glob("checkpoints/step_*/manifest.json")).read_text())
        figures["raw"] = _raw(place / f"raw_{rank}", manifest["files"][rank]["bytes"])
    finally:
        barrier()
        if rank == 0:
            shutil.rmtree(place)
        steps.close()
    return figures | {
        "describe": engine.describe(),
        "parameters": sum(engine.num_parameters.values()),
        "bytes": [entry["bytes"] for entry in manifest["files"]],
    }


def _turns(steps: Steps, saver: Saver, device: torch.device, saves: int) -> dict[str, Any]:
    def timed(work: Callable[[], Any]) -> float:
        _wait(device)
        began = time.perf_counter()
        work()
        _wait(device)
        return time.perf_counter() - began

    def step() -> float:
        return timed(steps.step)

    def save_and_wait() -> None:
        saver.start(steps.done, {})
        saver.finish()

    for _ in range(_WARM):
        step()
    figures: dict[str, Any] = {"quiet": [], "stall": [], "behind": [], "safe": [], "synchronous": []}
    for _ in range(saves):
        figures["quiet"] += [step() for _ in range(_QUIET)]
        began = time.perf_counter()
        figures["stall"].append(timed(lambda: saver.start(steps.done, {})))
        behind = []
        while saver.unfinished:
            behind.append(step())
            saver.advance(steps.done, bool(max_over_ranks(saver.busy)))
        figures["behind"].append(behind)
        figures["safe"].append(time.perf_counter() - began)
        figures["quiet"] += [step() for _ in range(_QUIET)]
        barrier()
        figures["synchronous"].append(timed(save_and_wait))
        if torch.distributed.get_rank() == 0:
            last = {key: figures[key][-1] for key in ("quiet", "stall", "safe", "synchronous")}
            print("rank 0: " + ", ".join(f"{key} {seconds:.3f} s" for key, seconds in last.items()), flush=True)
    return figures


def _raw(path: Path, size: int) -> dict[str, float]:
    """Bytes, and the seconds to write and flush them while all ranks write."""
    size = min(size, _RAW)
    values = torch.arange(size // 4, dtype=torch.float32)
    barrier()
    began = time.perf_counter()
    save_tensors({"x": values}, path)
    return {"bytes": size, "seconds": time.perf_counter() - began}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
