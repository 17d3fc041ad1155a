"""Times named parts of repeated work on any device. It synchronises the device: for benchmarks only."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ijepa_ds.bench.record import record
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.distributed.exchange import gather_objects, max_over_ranks
from ijepa_ds.training.engine import Engine


class Stopwatch:
    """`with watch("part")` adds to the current repeat; `watch.next()` starts another.

    Attributes:
        samples: part -> seconds of each repeat.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._row, self._off = device, defaultdict(float), False  # type: ignore[var-annotated]
        self.samples: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the seconds of the block, until the device has finished."""
        if self._off:
            yield
            return
        self._wait()
        began = time.perf_counter()
        yield
        self._wait()
        self._row[part] += time.perf_counter() - began

    def next(self, counts: bool = True) -> None:
        """End the repeat; it is discarded unless it counts."""
        for part, seconds in self._row.items() if counts else ():
            self.samples[part].append(seconds)
        self._row.clear()

    def slowest(self) -> dict[str, list[float]]:
        """`samples` of the slowest rank in each repeat."""
        every = gather_objects(dict(self.samples))
        return {part: [max(values) for values in zip(*(one[part] for one in every), strict=True)] for part in every[0]}

    def in_a_row(self, work: Callable[[], object], times: int) -> float:
        """Mean seconds of `times` calls of `work` on the slowest rank, without synchronisation in between."""
        self._off = True
        self._wait()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self._wait()
        seconds = (time.perf_counter() - began) / times
        self._off = False
        return max_over_ranks(seconds)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def settings(cfg: Config, engine: Engine, plan: BatchPlan) -> dict[str, Any]:
    """The `config` of a record: model, batch and ranks."""
    return {
        "model": cfg.model.name,
        "parameters": engine.num_parameters,
        "crop": cfg.data.crop_size,
        "patch": cfg.model.patch_size,
        "precision": cfg.model.precision,
        "checkpointing": cfg.model.recompute if cfg.model.activation_checkpointing else "none",
        "stage": engine.stage,
        "ranks": plan.world_size,
        "micro_batch": plan.micro_batch,
        "accumulation": plan.accumulation,
        "device": engine.device.type,
    }


def records_of(prefix: str, samples: dict[str, list[float]], config: dict[str, Any]) -> list[dict[str, Any]]:
    """One record in seconds for each part."""
    return [record(f"{prefix}.{part}", "s", values, config) for part, values in samples.items()]
