"""A run's stages: small crops first, a cool-down last. The configuration of a step, and contradictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ijepa_ds.config.schema import Config, Problem


def at_step(cfg: Config, step: int) -> Config:
    """The configuration of one step: in the first `data.early_steps`, crops are smaller.

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
    """Problems of the stage of small crops; `of_masks` returns those of drawing masks with a configuration."""
    size, steps, crop, patch = cfg.data.early_crop_size, cfg.data.early_steps, cfg.data.crop_size, cfg.model.patch_size
    keys = ("data.early_crop_size", "data.early_steps", "data.crop_size", "model.patch_size")
    if size is None or steps == 0:
        if size is not None or steps:
            here, missing = keys[:2] if size is not None else keys[1::-1]
            yield Problem((here, missing), f"needs {missing}: the side of the first crops, and the number of steps that use it")
    elif size >= crop or size % patch:
        yield Problem(keys, f"must be below data.crop_size {crop} and a multiple of model.patch_size {patch}, got {size}")
    else:
        for text in of_masks(at_step(cfg, 0)):
            yield Problem(keys, f"{size} leaves a grid of {size // patch} x {size // patch} patches: {text}")


def schedule_problems(cfg: Config) -> Iterator[Problem]:
    """Contradictions of the schedule."""
    o = cfg.optimization

    def problem(text: str, *names: str) -> Problem:
        return Problem(tuple(f"optimization.{name}" for name in (*names, "schedule")), text)

    if o.schedule == "cosine" and o.cooldown_steps > 0:
        yield problem("needs optimization.schedule: wsd", "cooldown_steps")
    if o.schedule != "wsd":
        return
    constant = "wsd keeps it constant, so that a run can continue from any step"
    if o.final_weight_decay != o.weight_decay:
        text = f"{constant}: set it to optimization.weight_decay ({o.weight_decay:g}), got {o.final_weight_decay:g}"
        yield problem(text, "final_weight_decay", "weight_decay")
    if o.ema[0] != o.ema[1]:
        yield problem(f"{constant}: set both to one value, got {list(o.ema)}", "ema")
    if o.ipe_scale != 1.0:
        yield problem(f"wsd has no horizon to stretch: set it to 1, got {o.ipe_scale:g}", "ipe_scale")
    if o.steps is not None and o.steps < (o.warmup_steps or 0) + o.cooldown_steps:
        text = f"{o.cooldown_steps} and a warm-up of {o.warmup_steps or 0} are longer than the run ({o.steps} steps)"
        yield problem(text, "cooldown_steps", "warmup_steps", "steps")
