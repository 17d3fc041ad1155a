"""Faults that happen for real, inside a rank, at a chosen moment."""

from __future__ import annotations

import errno
import functools
import importlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ijepa_ds import durable
from ijepa_ds.cluster import watch
from tests.dist.mounts import cover

MOMENTS = {
    "meet": "ijepa_ds.training.start:meet",
    "join": "ijepa_ds.training.start:initialise_distributed",
    "met": "ijepa_ds.training.start:host_barrier",
    "forward": "ijepa_ds.training.engine:Engine.forward",
    "backward": "ijepa_ds.training.engine:Engine.backward",
    "optimizer": "ijepa_ds.training.engine:Engine.optimizer_step",
    "save": "ijepa_ds.durable:fsync",  # a shard is in the page cache, not on the disk
    "commit": "ijepa_ds.checkpoint.writer:_write_synced",  # all shards are there, the manifest is not
    "read": "ijepa_ds.data.reading:Reader.read",  # an image, on a thread of the loader
    "step": "ijepa_ds.training.reporter:Reporter.after_step",
}


def inject(rank: int, faults: list[dict[str, Any]]) -> None:
    """Make `{rank, moment, at, action}` happen: at the `at`-th call (from 1) of `moment` on `rank` (None: on all).

    Actions: kill (SIGKILL), hang (sleep for an hour), freeze (SIGSTOP), raise, nan (the loss), slow (`seconds` or 0.1, at
    each call). These need no moment: storage (`break_storage`), cover (`mounts.cover`), first_limit (of the watch).
    """
    for fault in faults:
        if fault["action"] == "storage":
            break_storage(fault["seed"])
        elif fault["action"] == "first_limit":
            watch._FIRST = fault["seconds"]
        elif fault["action"] == "cover":
            if fault["rank"] == rank:
                cover(fault["folder"], fault["by"])
        elif fault.get("rank") in (None, rank):
            module, _, path = MOMENTS[fault["moment"]].partition(":")
            owner: Any = importlib.import_module(module)
            *parents, name = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent)
            setattr(owner, name, _faulty(getattr(owner, name), fault))


def _faulty(function: Callable[..., Any], fault: dict[str, Any]) -> Callable[..., Any]:
    calls, at, until = 0, fault.get("at", 1), fault.get("until")

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        action = fault["action"]
        if action == "slow":
            time.sleep(fault.get("seconds", 0.1))
        elif action == "nan":
            output = function(*arguments, **named)
            if at <= calls <= (until or at):
                output = output._replace(loss=output.loss * float("nan"))
            return output
        elif calls == at:
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif action == "freeze":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif action == "hang":
                time.sleep(3600)
            elif action == "raise":
                raise RuntimeError("as a bug would")
        return function(*arguments, **named)

    return wrapped


def break_storage(seed: int) -> None:
    """Make the storage of images and of checkpoints fail for moments, from now on, as a file server that restarts does.

    Outages of 0.05 to 0.8 s begin 0.2 to 2 s after one another: opening an image and flushing a shard then fail.
    """
    draw, lock, outage = random.Random(seed * 1000 + os.getpid()), threading.Lock(), [0.0, 0.0]

    def strike(path: object) -> None:
        with lock:
            now = time.monotonic()
            if now > outage[1]:
                outage[0] = now + draw.uniform(0.2, 2.0)
                outage[1] = outage[0] + draw.uniform(0.05, 0.8)
            code = draw.choice((errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENOMEM))
        if outage[0] <= now <= outage[1]:
            raise OSError(code, os.strerror(code), str(path))

    opened, flush = os.open, durable.fsync

    def open_or_fail(path: Any, *rest: Any, **keys: Any) -> int:
        if os.fsdecode(path).endswith((".jpg", ".png")):
            strike(path)
        return opened(path, *rest, **keys)

    def flush_or_fail(path: Path) -> None:
        if path.suffix == ".safetensors":
            strike(path)
        flush(path)

    os.open, durable.fsync = open_or_fail, flush_or_fail


def log_samples(place: Path, rank: int) -> None:
    """Write the index of every image that is trained on, with its step, to `samples-RANK-PROCESS.jsonl`."""
    from ijepa_ds.data import loader, samples

    file = (place / f"samples-{rank}-{os.getpid()}.jsonl").open("w", buffering=1)
    planned: dict[int, np.ndarray] = {}
    plan = samples.SamplePlan.samples

    def remembered(self: Any, micro: int) -> Any:
        result = plan(self, micro)
        planned[micro] = result.indices
        return result

    start, following = loader.ImageBatches.__init__, loader.ImageBatches.__next__

    def started(self: Any, *arguments: Any, **named: Any) -> None:
        self._micro, self._accumulation = named["start_step"] * named["accumulation"], named["accumulation"]
        start(self, *arguments, **named)

    def given(self: Any) -> Any:
        batch = following(self)
        line = {"step": self._micro // self._accumulation, "samples": planned.pop(self._micro).tolist()}
        file.write(json.dumps(line) + "\n")
        self._micro += 1
        return batch

    samples.SamplePlan.samples = remembered  # type: ignore[method-assign]
    loader.ImageBatches.__init__, loader.ImageBatches.__next__ = started, given  # type: ignore[method-assign]
