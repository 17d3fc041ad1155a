"""A run's stages: small crops first, a cool-down last. How the configuration reads in each, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ijepa_ds.config.schema import Config


@dataclass(frozen=True)
class Problem:
    """One thing to change.

    Attributes:
        keys: dotted keys (or sections) it is about; it is reported at the first.
        text: what is wrong and what to do.
    """

    keys: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        """The line that a person reads."""
        return f"{self.keys[0]}: {self.text}"


def at_step(cfg: Config, step: int) -> Config:
    """The configuration as it is in a step: in the first `data.early_steps` with smaller crops.

    `masks.context_tokens` is then the same share of the patches.
    """
    size = cfg.data.early_crop_size
    if size is None or step >= cfg.data.early_steps:
        return cfg
    masks, share = cfg.masks, (size / cfg.data.crop_size) ** 2
    if masks.context_tokens is not None:
        masks = replace(masks, context_tokens=max(1, round(masks.context_tokens * share)))
    return replace(cfg, data=replace(cfg.data, crop_size=size), masks=masks)


def resolution_problems(cfg: Config, of_masks: Callable[[Config], Sequence[str]]) -> Iterator[Problem]:
    """What is wrong with the stage of small crops; `of_masks` says what cannot be drawn with a configuration."""
    size, steps, crop, patch = cfg.data.early_crop_size, cfg.data.early_steps, cfg.data.crop_size, cfg.model.patch_size
    keys = ("data.early_crop_size", "data.early_steps", "data.crop_size", "model.patch_size")
    if (size is None) != (steps == 0):
        if size is None:
            here, missing = "data.early_steps", "data.early_crop_size"
        else:
            here, missing = "data.early_crop_size", "data.early_steps"
        yield Problem((here, missing), f"needs {missing}: the side of the first crops, and in how many steps they are so small")
    if size is None or size < 1 or steps < 1:
        return
    if size >= crop or size % patch:
        yield Problem(keys, f"must be below data.crop_size {crop} and a multiple of model.patch_size {patch}, got {size}")
        return
    for text in of_masks(at_step(cfg, 0)):
        yield Problem(keys, f"{size} leaves a grid of {size // patch} x {size // patch} patches: {text}")


def schedule_problems(cfg: Config) -> Iterator[Problem]:
    """What contradicts the schedule."""
    o = cfg.optimization
    if o.schedule == "cosine" and o.cooldown_steps > 0:
        yield Problem(("optimization.cooldown_steps", "optimization.schedule"), "needs optimization.schedule: wsd")
    if o.schedule != "wsd":
        return
    constant = "wsd keeps it constant, so that a run can go on from any step"
    if o.final_weight_decay != o.weight_decay:
        text = f"{constant}: set it to optimization.weight_decay ({o.weight_decay:g}), got {o.final_weight_decay:g}"
        yield Problem(("optimization.final_weight_decay", "optimization.weight_decay", "optimization.schedule"), text)
    if o.ema[0] != o.ema[1]:
        yield Problem(("optimization.ema", "optimization.schedule"), f"{constant}: set both to one value, got {list(o.ema)}")
    if o.ipe_scale != 1.0:
        text = f"wsd has no horizon to stretch: set it to 1, got {o.ipe_scale:g}"
        yield Problem(("optimization.ipe_scale", "optimization.schedule"), text)
    if o.steps is not None and 0 < o.steps < (o.warmup_steps or 0) + o.cooldown_steps:
        text = f"{o.cooldown_steps} and a warm-up of {o.warmup_steps or 0} are longer than the run ({o.steps} steps)"
        yield Problem(("optimization.cooldown_steps", "optimization.warmup_steps", "optimization.steps"), text)
