"""Buffers of a step beside the states, with their lifetimes: the peak is read off them.

Moments of a step: a forward pass ends and its backward pass starts; the backward pass ends and gradients are reduced, for the
first and for later micro-batches; the optimizer; the EMA. Saving allocates nothing on the device. The comments name what
DeepSpeed 0.19.8 does (`runtime/zero/*.py`, `runtime/bf16_optimizer.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ijepa_ds.model.work import Work
from ijepa_ds.plan.activations import activations_of
from ijepa_ds.plan.buckets import STAGE_0_BUCKET
from ijepa_ds.plan.gathered import gathering_of, kept_elements
from ijepa_ds.plan.spread import Spread

FIRST, REDUCE, LATER, REDUCE_LATER, OPTIMIZER, EMA = (
    "start of the first backward pass",
    "end of the first backward pass",
    "start of a later backward pass",
    "end of the last backward pass",
    "optimizer step",
    "EMA",
)
_PASSES, _STEP = (FIRST, REDUCE, LATER, REDUCE_LATER), (OPTIMIZER, EMA)
_ALL = (*_PASSES, *_STEP)


@dataclass(frozen=True)
class Buffer:
    """Bytes that exist at some moments of a step, beside the states.

    Attributes:
        name: For tables.
        bytes: On one rank.
        during: The moments.
    """

    name: str
    bytes: float
    during: tuple[str, ...]

    @property
    def permanent(self) -> bool:
        """Whether it also exists between steps."""
        return self.during == _ALL


@dataclass(frozen=True)
class Moment:
    """A moment of a step.

    Attributes:
        name: For tables.
        held: Buffers that exist then.
    """

    name: str
    held: tuple[Buffer, ...]

    @property
    def bytes(self) -> float:
        """Bytes beside the states."""
        return sum(buffer.bytes for buffer in self.held)


def moments_of(buffers: list[Buffer], spread: Spread) -> list[Moment]:
    """Return the moments of a step; without accumulation there are no later micro-batches."""
    names = _ALL if spread.accumulation > 1 else (FIRST, REDUCE, *_STEP)
    return [Moment(name, tuple(buffer for buffer in buffers if name in buffer.during)) for name in names]


def buffers_of(work: Work, spread: Spread, masters: float) -> list[Buffer]:
    """Return the buffers of a step.

    Args:
        work: Shapes of the run.
        spread: Distribution over devices.
        masters: Bytes of the float32 masters on the device; 0 if they are offloaded.
    """
    activations = Buffer("activations", activations_of(work, spread.micro_batch), (FIRST, LATER))
    stage = {0: _stage_0, 1: _stage_1, 2: _stage_2, 3: _stage_3}[spread.stage]
    found = [activations, *stage(work, spread, masters)]
    return [buffer for buffer in found if buffer.bytes]


def _float32_sums(work: Work, spread: Spread) -> bool:
    """Whether bfloat16 gradients are summed in float32 (`data_types.grad_accum_dtype`)."""
    return work.weight_bytes == 2 and spread.accumulation > 1 and spread.stage > 0


def _stage_0(work: Work, spread: Spread, _: float) -> Iterator[Buffer]:
    every, b = work.count(), work.weight_bytes
    # gradients stay from micro-batch to micro-batch; they are all-reduced in copies
    yield Buffer("gradients", b * every, (REDUCE, LATER, REDUCE_LATER, OPTIMIZER))
    last = REDUCE_LATER if spread.accumulation > 1 else REDUCE
    yield Buffer("copies for the all-reduce", b * float(min(every, STAGE_0_BUCKET)), (last,))
    if b == 2:
        yield Buffer("float32 gradients", 4.0 * every, (OPTIMIZER,))


def _stage_1(work: Work, spread: Spread, masters: float) -> Iterator[Buffer]:
    every, b, last = work.count(), work.weight_bytes, REDUCE_LATER if spread.accumulation > 1 else REDUCE
    if _float32_sums(work, spread):  # BF16_Optimizer: whole float32 sums for good, all-reduced in copies
        yield Buffer("gradients, float32 sums", 4.0 * every, _ALL)
        yield Buffer("gradients", b * every, (REDUCE, LATER, REDUCE_LATER, OPTIMIZER))
        yield Buffer("copies for the all-reduce", _joined_and_rounded(work), (last,))
    else:
        yield Buffer("gradients", b * every, (REDUCE, LATER, REDUCE_LATER))
        # rank 0 copies its share out of the first bucket, when the gradients in that bucket are freed
        share = b * every / spread.world
        yield Buffer("gradients of the rank's share", max(0.0, share - b * min(spread.bucket, every)), (last,))
        yield Buffer("gradients of the rank's share, for the step", share, (OPTIMIZER,))
        yield from _flattened(work, spread, masters)
        # the bucket exists while gradients are produced, although it is filled at the end of the last pass only
        yield Buffer("bucket", _buckets(work, spread), _PASSES)


def _joined_and_rounded(work: Work) -> float:
    """Bytes of the copies when float32 sums are all-reduced: groups joined to buckets, and rounded to bfloat16."""
    copies, bucket = 0.0, list[int]()
    for numel in [*_groups(work), 0]:
        if numel:
            bucket.append(numel)
        if bucket and (not numel or sum(bucket) > STAGE_0_BUCKET):
            copies = max(copies, sum(bucket) * (2.0 + (4.0 if len(bucket) > 1 else 0.0)))  # one tensor alone is not joined
            bucket = []
    return copies


def _stage_2(work: Work, spread: Spread, masters: float) -> Iterator[Buffer]:
    every, b = work.count(), work.weight_bytes
    sums = 4 if _float32_sums(work, spread) else b
    yield Buffer("gradients of the rank's share", sums * every / spread.world, (REDUCE, LATER, REDUCE_LATER, OPTIMIZER))
    if sums == b:
        yield from _flattened(work, spread, masters)
    yield Buffer("buckets", _buckets(work, spread), _PASSES)
    # zero.owners: a share of the bucket and the rank's own slices; otherwise DeepSpeed joins what it reduces
    share = every / spread.world
    slices = {"shared": 2 * spread.bucket / spread.world, "rooted": min(spread.bucket, share), "all_reduce": spread.bucket}
    copies = b * min(every, slices[spread.reduction])
    yield Buffer("copies for the reduction", copies if spread.world > 1 else 0.0, (REDUCE, REDUCE_LATER))


def _flattened(work: Work, spread: Spread, masters: float) -> Iterator[Buffer]:
    """The optimizer joins the share of one group after the other, and converts it to float32."""
    largest, b = max(_groups(work)) / spread.world, work.weight_bytes
    if masters:
        yield Buffer("joined gradients of a group", (b + (4 if b == 2 else 0)) * largest, (OPTIMIZER,))


def _stage_3(work: Work, spread: Spread, masters: float) -> Iterator[Buffer]:
    every, b = work.count(), work.weight_bytes
    sums = 4 if _float32_sums(work, spread) else b
    share = every / spread.world
    yield Buffer("gradients of the rank's share", sums * share, _ALL)
    yield Buffer("bucket", b * float(spread.bucket) if spread.contiguous else 0.0, _ALL)
    yield Buffer("gathered weights", b * gathering_of(work, spread).peak, (FIRST, LATER))
    target = kept_elements(work, spread).target if spread.world > 1 else 0
    yield Buffer("gathered target", b * float(target), (REDUCE, REDUCE_LATER))
    # sorting a full bucket by ranks and dividing it takes two more copies
    yield Buffer("copies for the reduction", 2 * b * float(min(spread.bucket, every)), (REDUCE, REDUCE_LATER))
    if spread.hpz > 1:  # of all weights, the frozen ones included: from their first release until the step, or the EMA
        early = (work.count("encoder") + gathering_of(work, spread).again) / spread.hpz
        yield Buffer("secondary weights (hpZ)", b * early, (FIRST,))
        secondary = b * (every + work.count("encoder")) / spread.hpz
        yield Buffer("secondary weights (hpZ)", secondary, (REDUCE, LATER, REDUCE_LATER, OPTIMIZER))
    if masters:  # one sub-group after the other: joined, then converted
        part = min(float(spread.sub_group), max(_groups(work)) / spread.world)
        yield Buffer("joined gradients of a sub-group", (sums + (4 if sums == 2 else 0)) * part, (OPTIMIZER,))


def _buckets(work: Work, spread: Spread) -> float:
    return work.weight_bytes * float(spread.bucket) * (1 + spread.double_bucket) if spread.contiguous else 0.0


def _groups(work: Work) -> Iterator[int]:
    """Elements of the optimizer's groups: encoder and predictor, each with and without decay."""
    for part in ("encoder", "predictor"):
        for decay in (True, False):
            yield sum(p.numel for p in work.parameters if p.part == part and p.decay == decay)
