"""Contradictions of the sections `targets` and `objective`."""

from __future__ import annotations

from collections.abc import Iterator

from ijepa_ds.config.batch import plan_of
from ijepa_ds.config.objective import ObjectiveConfig
from ijepa_ds.config.schema import Config, ConfigError, Problem
from ijepa_ds.config.sizes import size_of

_SPREAD = ("objective.variance_weight", "objective.covariance_weight")


def objective_problems(cfg: Config, world_size: int | None) -> Iterator[Problem]:
    """Contradictions of both sections, on `world_size` devices if given."""
    yield from _targets(cfg)
    yield from _context_loss(cfg)
    yield from _spread(cfg, world_size)


def _targets(cfg: Config) -> Iterator[Problem]:
    t, depth = cfg.targets, size_of(cfg.model).depth
    if t.layers and t.layers[-1] > depth:
        text = f"the encoder has blocks 1 to {depth} (model.name, model.depth), got {list(t.layers)}"
        yield Problem(("targets.layers", "model.depth", "model.name"), text)
    if t.combine != "concat" and len(t.layers or ()) < 2:
        text = f"{t.combine} has no effect without two or more targets.layers; remove it, or name them"
        yield Problem(("targets.combine", "targets.layers"), text)


def _context_loss(cfg: Config) -> Iterator[Problem]:
    o = cfg.objective
    if o.context_warmup and not o.context_weight:
        text = "has no effect while objective.context_weight is 0; remove it, or set the weight"
        yield Problem(("objective.context_warmup", "objective.context_weight"), text)


def _spread(cfg: Config, world_size: int | None) -> Iterator[Problem]:
    """The terms whose statistics are over the global batch."""
    o, batch = cfg.objective, cfg.optimization.batch_size
    if not o.spreads:
        if o.projection != ObjectiveConfig().projection:
            text = f"has no effect while {' and '.join(_SPREAD)} are 0; remove it, or set one of them"
            yield Problem(("objective.projection", *_SPREAD), text)
        return
    weights = (o.variance_weight, o.covariance_weight)
    keys = tuple(key for key, weight in zip(_SPREAD, weights, strict=True) if weight)
    if batch < 2:
        text = f"statistics of a batch need 2 images or more, got optimization.batch_size {batch}"
        yield Problem((*keys, "optimization.batch_size"), text)
    try:
        plan = plan_of(cfg, world_size or batch)
    except ConfigError:  # reported by itself
        return
    if plan.accumulation > 1:
        text = (
            f"its statistics are over the global batch, so a device must take its share in one pass, but {batch} images on "
            f"{plan.world_size} device{'s' if plan.world_size > 1 else ''} are {plan.accumulation} passes of "
            f"{plan.micro_batch}; {_one_pass(cfg, batch // plan.world_size)}, or use more devices"
        )
        yield Problem((*keys, "optimization.max_micro_batch", "optimization.batch_size", "masks.truncation_group"), text)


def _one_pass(cfg: Config, share: int) -> str:
    """What lets a device take its share of the batch in one pass."""
    masks, needed = cfg.masks, []
    if cfg.optimization.max_micro_batch < share:
        needed.append(f"raise optimization.max_micro_batch to {share}")
    if masks.sampler == "published" and cfg.optimization.batch_size > masks.truncation_group and masks.truncation_group % share:
        needed.append(f"set masks.truncation_group to a multiple of {share}, or masks.sampler to unbiased")
    return " and ".join(needed)
