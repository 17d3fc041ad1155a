"""Checks of new runs only: settings that run, but not as somebody would want. A run that exists continues as it is."""

from __future__ import annotations

from collections.abc import Iterator

from ijepa_ds.config.batch import BatchPlan, plan_batch, plan_of
from ijepa_ds.config.build import nodes
from ijepa_ds.config.schema import Config, Problem, flatten

_LOSS = 8  # a micro-batch smaller by this factor than without truncation groups is refused


def fresh_problems(cfg: Config, world_size: int) -> list[Problem]:
    """What a new run on `world_size` devices should not begin with."""
    return [*_without_effect(cfg), *_warmup(cfg), *_tiny_micro_batches(cfg, world_size)]


def _without_effect(cfg: Config) -> Iterator[Problem]:
    """Keys that differ from their default although the choice that reads them (`only_with`) is not made."""
    flat = flatten(cfg)
    for key, node in nodes().items():
        if "only_with" not in node or flat[key] == node.get("default"):
            continue
        owner, _, choice = node["only_with"].partition("=")
        now = str(flat[owner]).lower()
        if now != choice:
            text = f"has no effect with {owner}: {now}; remove it, or set {owner}: {choice}"
            yield Problem((key, owner), text)


def _warmup(cfg: Config) -> Iterator[Problem]:
    o = cfg.optimization
    if o.start_lr > o.lr and (o.warmup_steps or o.warmup_epochs):
        text = f"{o.start_lr:g} is above optimization.lr {o.lr:g}, so the warm-up would lower the rate; use {o.lr / 5:g}"
        yield Problem(("optimization.start_lr", "optimization.lr"), text)


def _tiny_micro_batches(cfg: Config, world_size: int) -> Iterator[Problem]:
    """A batch whose share of a device has little in common with the truncation group is cut into very small passes."""
    o = cfg.optimization
    plan, free = plan_of(cfg, world_size), plan_batch(o.batch_size, o.max_micro_batch, world_size)
    if plan.micro_batch * _LOSS > free.micro_batch:
        return
    use = " or ".join(str(batch) for batch in _better(cfg, world_size, free))
    text = (
        f"{o.batch_size} images on {world_size} devices are {plan.accumulation} passes of {plan.micro_batch}, because no micro-"
        f"batch may cross a border of masks.truncation_group ({cfg.masks.truncation_group}); use {use}, or another group"
    )
    yield Problem(("optimization.batch_size", "masks.truncation_group"), text)


def _better(cfg: Config, world_size: int, free: BatchPlan) -> Iterator[int]:
    """The nearest smaller and larger batches whose passes are at least half as large as without groups."""
    o, group = cfg.optimization, cfg.masks.truncation_group
    for step in (-world_size, world_size):
        for batch in range(o.batch_size + step, 2 * o.batch_size if step > 0 else 0, step):
            if 2 * plan_batch(batch, o.max_micro_batch, world_size, group).micro_batch >= min(free.micro_batch, group):
                yield batch
                break
