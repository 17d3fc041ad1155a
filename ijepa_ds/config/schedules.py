"""Learning rate, weight decay and EMA momentum as pure functions of the step's number, which counts from 0.

`cosine`: the cosines have a horizon T of `ipe_scale` times the run's length and are not followed beyond it, where they would
rise again. Equal to the published runs to the last bit.

`wsd` (warm-up, constant, cool-down; Zhai et al. 2022, Haegele et al. 2024): weight decay and momentum are constant, and no
step before the cool-down depends on the run's length, so that a run can be made longer, or branched, there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ijepa_ds.config.schema import Config, ConfigError


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Whole batches in one pass over `num_samples` images.

    Raises:
        ConfigError: the images do not fill one batch.
    """
    if num_samples < batch_size:
        text = f"holds {num_samples} images, fewer than one batch of {batch_size}"
        raise ConfigError([f"data.source: {text}; lower optimization.batch_size to at most {num_samples}"])
    return num_samples // batch_size


class StepSettings(NamedTuple):
    """The scheduled values of one step."""

    lr: float
    weight_decay: float
    momentum: float  # of the EMA


@dataclass(frozen=True)
class Schedule:
    """The three schedules of one run."""

    total_steps: int  # optimizer steps of the run
    warmup_steps: int  # linear warm-up of the learning rate
    horizon: int  # T, the step at which the schedules reach their final values
    start_lr: float  # at the start of the warm-up
    peak_lr: float  # at the end of the warm-up
    final_lr: float  # at the horizon
    start_weight_decay: float
    final_weight_decay: float  # at the horizon
    ema: tuple[float, float]  # momentum at the start and at the horizon
    context_warmup: int = 0  # steps in which the loss on context patches gains its weight
    cooldown: int | None = None  # wsd: the first step of the linear fall from `peak_lr` to `final_lr` at the end; None: cosines

    @classmethod
    def of(cls, cfg: Config, steps_per_epoch: int) -> Schedule:
        """The schedules of `cfg` when one epoch has `steps_per_epoch` optimizer steps.

        Raises:
            ConfigError: the run has no step, or its warm-up or cool-down is longer than its schedules.
        """
        o = cfg.optimization
        if o.steps is not None:
            total, horizon = o.steps, int(o.ipe_scale * o.steps)
        else:
            epochs = o.epochs or 0.0
            total, horizon = int(epochs * steps_per_epoch), int(o.ipe_scale * epochs * steps_per_epoch)
        warmup = o.warmup_steps if o.warmup_steps is not None else int((o.warmup_epochs or 0.0) * steps_per_epoch)
        cooldown = total - o.cooldown_steps if o.schedule == "wsd" else None
        problem = None
        if min(total, horizon) < 1:
            text = f"{o.epochs} epochs of {steps_per_epoch} steps (ipe_scale {o.ipe_scale}) make no step"
            problem = f"epochs: {text}; raise epochs, or lower batch_size"
        elif warmup > horizon:
            text = f"{warmup} steps of warm-up in schedules of {horizon} steps; lengthen the run or shorten the warm-up"
            problem = f"warmup_{'epochs' if o.warmup_steps is None else 'steps'}: {text}"
        elif cooldown is not None and cooldown < warmup:
            text = f"{o.cooldown_steps} and a warm-up of {warmup} are longer than the run ({total} steps)"
            problem = f"cooldown_steps: {text}"
        if problem:
            raise ConfigError([f"optimization.{problem}"])
        decay = (o.weight_decay, o.final_weight_decay)
        rise = int(cfg.objective.context_warmup * total)
        return cls(
            *(total, warmup, horizon, o.start_lr, o.lr, o.final_lr, *decay), ema=o.ema, context_warmup=rise, cooldown=cooldown
        )

    def at(self, step: int) -> StepSettings:
        """The three values of a step."""
        return StepSettings(self.lr(step), self.weight_decay(step), self.momentum(step))

    def lr(self, step: int) -> float:
        """Learning rate of a step."""
        t = self._t(step)
        if t < self.warmup_steps:
            return self.start_lr + t / self.warmup_steps * (self.peak_lr - self.start_lr)
        if self.cooldown is not None:
            fallen = max(0, t - self.cooldown) / max(1, self.total_steps - self.cooldown)
            return self.peak_lr + fallen * (self.final_lr - self.peak_lr)
        progress = (t - self.warmup_steps) / max(1, self.horizon - self.warmup_steps)
        return self.final_lr + (self.peak_lr - self.final_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))

    def weight_decay(self, step: int) -> float:
        """Weight decay of a step (parameter groups without decay stay at 0)."""
        start, final = self.start_weight_decay, self.final_weight_decay
        if self.cooldown is not None:
            return start
        progress = self._t(step) / self.horizon
        value = final + (start - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return min(value, final) if start <= final else max(value, final)

    def momentum(self, step: int) -> float:
        """Momentum of the target's update after a step."""
        first, last = self.ema
        if self.cooldown is not None:
            return first
        k = self._t(step) - 1
        return first + k * (last - first) / self.horizon

    def context_share(self, step: int) -> float:
        """Share of `objective.context_weight` that a step has reached."""
        return min(1.0, (step + 1) / self.context_warmup) if self.context_warmup else 1.0

    def same_until(self, other: Schedule) -> int:
        """Number of first steps that are equal in two `wsd` schedules that differ only in length."""
        assert self.cooldown is not None and other.cooldown is not None
        return min(self.cooldown, other.cooldown)

    def _t(self, step: int) -> int:
        """The method's step, from 1 and never past the horizon."""
        if step < 0:
            raise ValueError(f"steps count from 0, got {step}")
        return min(step + 1, self.horizon)
