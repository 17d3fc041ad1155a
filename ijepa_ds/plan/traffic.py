"""Bytes that a step sends, by collective and by link.

The bytes of a message are those of the reduced tensor of an all-reduce, the whole result of an all-gather, or the whole
input of a reduce-scatter (as in `ijepa_ds.zero.collectives`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ijepa_ds.model.work import Work
from ijepa_ds.plan.buckets import gradient_collectives
from ijepa_ds.plan.gathered import gathering_of, persistent_elements
from ijepa_ds.plan.spread import Spread

# Bytes that a rank sends per byte of the message, as a multiple of (W - 1) / W (NCCL tests, "bus bandwidth"). For
# reductions to one rank, every rank except the root sends the message once.
_SENT = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "reduce": 1, "all_to_all": 1}


@dataclass(frozen=True)
class Message:
    """All collectives of one purpose in a step.

    Attributes:
        purpose: Name in tables.
        kind: all_reduce, all_gather, reduce_scatter, reduce or all_to_all.
        bytes: Sum over the messages.
        group: Number of ranks in the group.
        calls: Number of collectives.
        when: "forward", "backward" or "step": the computation that can overlap.
    """

    purpose: str
    kind: str
    bytes: int
    group: int
    when: str
    calls: int = 1

    @property
    def sent(self) -> float:
        """Bytes that one rank sends."""
        return _SENT[self.kind] * self.bytes * (self.group - 1) / self.group


def traffic_of(work: Work, spread: Spread) -> list[Message]:
    """Return the messages of a step, without the few bytes of norms and flags; empty for a single rank."""
    world, b, rounds = spread.world, work.weight_bytes, spread.accumulation
    if world == 1:
        return []
    every = work.count()
    if spread.stage == 0:
        return [Message("gradients", "all_reduce", b * every, world, "step", gradient_collectives(work, spread))]
    if spread.stage < 3:
        # Stage 2 reduces at every micro-batch, because it keeps only its own gradients.
        gradients = b * every * (rounds if spread.stage == 2 else 1)
        kind = {"rooted": "reduce", "shared": "reduce_scatter", "all_reduce": "all_reduce"}[spread.reduction]
        if spread.stage == 1 and b == 2 and rounds > 1:
            kind = "all_reduce"  # BF16_Optimizer's float32 sums, rounded to bfloat16 (engine.communication_data_type)
        when = "backward" if spread.double_bucket else "step"
        moved = gradients // world if kind == "reduce_scatter" else 0
        calls = gradient_collectives(work, spread)
        shards = sum(max(1, numel // spread.gather_bucket) for numel in _groups(work, None, world))
        return [
            Message("gradients", kind, gradients, world, when, calls),
            *([Message("gradients to their owners", "all_to_all", moved, world, when, calls)] if moved else []),
            Message("weights after the step", "all_gather", b * _flat(work, None, world), world, "step", shards),
            Message("target after the EMA", "all_gather", b * _flat(work, "encoder", world), world, "step", 2),
        ]
    padded = {part: _padded(work, part, world) for part in ("encoder", "predictor")}
    both = sum(padded.values())
    persistent = {part: persistent_elements(work, spread, part) for part in padded}
    gathering = gathering_of(work, spread)
    # a gather may join weights of target and encoder: shared out by elements
    in_target = sum(world * math.ceil(p.numel / world) for p in work.parameters if work.runs_in_target(p))
    target_calls = round(gathering.forward_calls * in_target / (in_target + both))
    student_calls = gathering.forward_calls - target_calls
    again = math.ceil(gathering.again * both / work.count())  # with padding
    # parameters that are never released: the target's once a step, because the EMA drops them; the others after the step
    target = in_target - persistent["encoder"]
    released = both - sum(persistent.values())
    # hpZ: the first micro-batch gathers from all ranks; after that every machine has a copy of all weights
    near, later = (spread.hpz, rounds - 1) if spread.hpz > 1 else (world, 0)
    once = rounds - later
    first = b * (once * target + persistent["encoder"])
    messages = [
        Message("target's weights, forward", "all_gather", first, world, "forward", once * target_calls),
        Message("weights, forward", "all_gather", b * once * released, world, "forward", once * student_calls),
        Message("target's weights, later", "all_gather", b * later * target, near, "forward", later * target_calls),
        Message("weights, later forward", "all_gather", b * later * released, near, "forward", later * student_calls),
        Message("weights, backward", "all_gather", b * rounds * again, near, "backward", rounds * gathering.backward_calls),
        Message("gradients", "reduce_scatter", b * rounds * both, world, "backward", gradient_collectives(work, spread)),
        Message("small weights after the step", "all_gather", b * sum(persistent.values()), world, "step"),
    ]
    return [message for message in messages if message.bytes]


def _flat(work: Work, part: str | None, world: int) -> int:
    """Return the elements of the flat buffers of stages 1 and 2, with padding."""
    return sum(_groups(work, part, world))


def _groups(work: Work, part: str | None, world: int) -> list[int]:
    """Return the elements of each flat buffer of stages 1 and 2: one per part and decay group, padded to 2 x W."""
    groups: dict[tuple[str, bool], int] = {}
    for p in work.parameters:
        if part in (None, p.part):
            groups[p.part, p.decay] = groups.get((p.part, p.decay), 0) + p.numel
    return [2 * world * math.ceil(numel / (2 * world)) for numel in groups.values()]


def _padded(work: Work, part: str, world: int) -> int:
    """Return the elements of a part under stage 3, where every parameter is padded to a multiple of W."""
    return sum(world * math.ceil(p.numel / world) for p in work.parameters if p.part == part)


@dataclass(frozen=True)
class Links:
    """Bytes of a step by link: sent by one device within its machine, and by one machine over the network."""

    within_machine: float
    network: float


def links_of(messages: list[Message], spread: Spread) -> Links:
    """Return the bytes by link, for rings that visit the devices of a machine one after another.

    Each device passes every message around the ring once (twice for an all-reduce); one device per machine sends to the
    next machine.
    """
    within = sum(m.sent for m in messages) if spread.gpus > 1 else 0.0
    network = sum(m.sent for m in messages if m.group > spread.gpus) if spread.nodes > 1 else 0.0
    return Links(within, network)
