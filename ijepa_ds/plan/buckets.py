"""How many collectives reduce the gradients of a step: the only place that knows it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ijepa_ds.model.work import Work
from ijepa_ds.plan.spread import Spread

STAGE_0_BUCKET = 500_000_000  # elements that one all-reduce of stage 0 joins (deepspeed/runtime/engine.py)


def gradient_collectives(work: Work, spread: Spread) -> int:
    """Return the collectives that reduce a step's gradients.

    Stage 0, and stage 1 with float32 sums: an all-reduce for every `STAGE_0_BUCKET` elements. Otherwise one for each bucket,
    or, if slices are reduced to their owners, one for each rank that owns a part of the bucket. (`zero.owners` sends as many
    all-to-alls again.) Stages 2 and 3 reduce in every micro-batch.
    """
    rounds = spread.accumulation
    if spread.stage == 0 or (spread.stage == 1 and work.weight_bytes == 2 and rounds > 1):
        return math.ceil(work.count() / STAGE_0_BUCKET)
    owners = spread.stage < 3 and spread.reduction == "rooted"
    calls = sum(len(ranks) if owners else 1 for ranks in _buckets(work, spread))
    return calls * (rounds if spread.stage > 1 else 1)


def _buckets(work: Work, spread: Spread) -> Iterator[set[int]]:
    """Yield, for each bucket of gradients, the ranks that own a part of it.

    Stage 1 fills buckets group by group after the last backward pass, stages 2 and 3 in the order of the backward pass. A
    bucket is sent when the next gradient does not fit.
    """
    placed = list(_placed(work, spread.world))
    order = sorted(placed, key=lambda one: one[0]) if spread.stage == 1 else placed[::-1]
    elements, ranks = 0, set[int]()
    for _, numel, first, last in order:
        if elements and elements + numel > spread.bucket:
            yield ranks
            elements, ranks = 0, set[int]()
        elements += numel
        ranks.update(range(first, last + 1))
    yield ranks


def _placed(work: Work, world: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield optimizer group, elements, and first and last owner of every gradient, in module order (stages 1 and 2)."""
    keys = [("encoder", True), ("encoder", False), ("predictor", True), ("predictor", False)]
    sizes = [sum(p.numel for p in work.parameters if (p.part, p.decay) == key) for key in keys]
    shares = [max(1, 2 * math.ceil(size / (2 * world))) for size in sizes]
    offsets = [0] * len(keys)
    for p in work.parameters:
        group = keys.index((p.part, p.decay))
        first = offsets[group]
        offsets[group] += p.numel
        yield group, p.numel, first // shares[group], (offsets[group] - 1) // shares[group]
