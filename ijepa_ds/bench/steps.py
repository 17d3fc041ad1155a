"""Optimizer steps on real images, one at a time, whose parts can be timed."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.bench.traffic import Traffic
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.data.augment import network_input
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.training.engine import Engine

PHASES = ("forward", "backward", "optimizer", "ema")


class Phases:
    """Seconds and traffic of the phases of a step.

    CPU seconds are recorded as well as wall seconds: other load on the machine does not change them.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.processor: dict[str, float] = defaultdict(float)
        self.traffic = {phase: Traffic() for phase in PHASES}
        self.counting = False

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Any:
        """Time the block, or count its traffic while `counting` is set."""
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


class Steps:
    """Real optimizer steps on real images, one at a time."""

    def __init__(
        self, engine: Engine, cfg: Config, plan: BatchPlan, rank: int, folder: ImageIndex, phases: Phases | None = None
    ) -> None:
        """Start the loader; `phases` times the parts of a step."""
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
        """One optimizer step; the loss of this rank, a scalar on the device."""
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
        """Stop the loader."""
        self._batches.close()
