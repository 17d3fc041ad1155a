"""Contradictions of the sections `targets` and `objective`."""

from __future__ import annotations

from collections.abc import Iterator

from ijepa_ds.config.schema import Config, Problem
from ijepa_ds.config.sizes import size_of


def objective_problems(cfg: Config) -> Iterator[Problem]:
    """Contradictions of both sections."""
    yield from _targets(cfg)
    yield from _context_loss(cfg)


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
