"""Learning rate, weight decay and EMA momentum of every step: pure functions of the step's number.

`step` counts iterations from 0. `cosine`: the cosines belong to a horizon T of `ipe_scale` times the run's length and
are never followed past it (they would turn upward again). Matched to the published runs to the last bit.

`wsd` (warm-up, constant, cool-down; Zhai et al. 2022, Haegele et al. 2024): weight decay and momentum are constant, and no
step before the cool-down knows how long the run is, so that a run can be made longer, or branched, there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ijepa_ds.config import Config, ConfigError


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Whole batches in one pass over `num_samples` images.

    Raises:
        ConfigError: the images do not fill one batch.
    """
    if num_samples < batch_size:
        raise ConfigError(
            [
                f"data.source: holds {num_samples} images, fewer than one batch of {batch_size}; "
                f"lower optimization.batch_size to at most {num_samples}"
            ]
        )
    return num_samples // batch_size


class StepSettings(NamedTuple):
    """What the schedules say for one step."""

    lr: float
    weight_decay: float
    momentum: float  # of the EMA


@dataclass(frozen=True)
class Schedule:
    """The three schedules of one run.

    Attributes:
        total_steps: optimiser steps the run makes.
        warmup_steps: steps of linear warm-up of the learning rate.
        horizon: T, the step at which the schedules reach their final values.
        start_lr: rate from which the warm-up starts.
        peak_lr: rate at the warm-up's end.
        final_lr: rate at the horizon.
        start_weight_decay: weight decay at the start.
        final_weight_decay: weight decay at the horizon.
        ema: momentum at the start and at the horizon.
        cooldown: the step (from 0) in which the rate begins to fall from `peak_lr` to `final_lr`, in a line that ends with the
            run; None: the cosines.
    """

    total_steps: int
    warmup_steps: int
    horizon: int
    start_lr: float
    peak_lr: float
    final_lr: float
    start_weight_decay: float
    final_weight_decay: float
    ema: tuple[float, float]
    cooldown: int | None = None

    @classmethod
    def of(cls, cfg: Config, steps_per_epoch: int) -> Schedule:
        """The schedules of `cfg` when one epoch has `steps_per_epoch` optimiser steps.

        Raises:
            ConfigError: the run has no step, or its warm-up is longer than its schedules.
        """
        o = cfg.optimization
        if o.steps is not None:
            total, horizon = o.steps, int(o.ipe_scale * o.steps)
        else:
            epochs = o.epochs or 0.0
            total, horizon = int(epochs * steps_per_epoch), int(o.ipe_scale * epochs * steps_per_epoch)
        warmup = o.warmup_steps
        if warmup is None:
            warmup = int((o.warmup_epochs or 0.0) * steps_per_epoch)
        if min(total, horizon) < 1:
            raise ConfigError(
                [
                    f"optimization.epochs: {o.epochs} epochs of {steps_per_epoch} steps (ipe_scale "
                    f"{o.ipe_scale}) make no step; raise epochs, or lower batch_size"
                ]
            )
        if warmup > horizon:
            raise ConfigError(
                [
                    f"optimization.warmup_{'epochs' if o.warmup_steps is None else 'steps'}: {warmup} steps "
                    f"of warm-up in schedules of {horizon} steps; lengthen the run or shorten the warm-up"
                ]
            )
        cooldown = total - o.cooldown_steps if o.schedule == "wsd" else None
        if cooldown is not None and cooldown < warmup:
            raise ConfigError(
                [
                    f"optimization.cooldown_steps: {o.cooldown_steps} and a warm-up of {warmup} are longer than the run "
                    f"({total} steps)"
                ]
            )
        return cls(
            total_steps=total,
            warmup_steps=warmup,
            horizon=horizon,
            start_lr=o.start_lr,
            peak_lr=o.lr,
            final_lr=o.final_lr,
            start_weight_decay=o.weight_decay,
            final_weight_decay=o.final_weight_decay,
            ema=o.ema,
            cooldown=cooldown,
        )

    def at(self, step: int) -> StepSettings:
        """All three of a step, counted from 0."""
        return StepSettings(self.lr(step), self.weight_decay(step), self.momentum(step))

    def lr(self, step: int) -> float:
        """Learning rate of the optimiser's step in iteration `step`."""
        t = self._t(step)
        if t < self.warmup_steps:
            return self.start_lr + t / self.warmup_steps * (self.peak_lr - self.start_lr)
        if self.cooldown is not None:
            fallen = max(0, t - self.cooldown) / max(1, self.total_steps - self.cooldown)
            return self.peak_lr + fallen * (self.final_lr - self.peak_lr)
        progress = (t - self.warmup_steps) / max(1, self.horizon - self.warmup_steps)
        return self.final_lr + (self.peak_lr - self.final_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))

    def weight_decay(self, step: int) -> float:
        """Weight decay of the optimiser's step in iteration `step` (groups without decay stay at 0)."""
        start, final = self.start_weight_decay, self.final_weight_decay
        if self.cooldown is not None:
            return start
        progress = self._t(step) / self.horizon
        value = final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return min(value, final) if start <= final else max(value, final)

    def momentum(self, step: int) -> float:
        """Momentum of the target's update after the optimiser's step of iteration `step`."""
        first, last = self.ema
        if self.cooldown is not None:
            return first
        k = self._t(step) - 1
        return first + k * (last - first) / self.horizon

    def same_until(self, other: Schedule) -> int:
        """How many steps from the start are the same by two schedules of `wsd` that differ in their lengths alone."""
        assert self.cooldown is not None and other.cooldown is not None
        return min(self.cooldown, other.cooldown)

    def _t(self, step: int) -> int:
        """The method's step, from 1 and never past the horizon."""
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        return min(step + 1, self.horizon)
