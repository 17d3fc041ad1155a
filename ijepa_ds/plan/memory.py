"""Bytes of a rank by part. The formulas follow the source of DeepSpeed 0.19 and measurements (docs/plan.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from ijepa_ds.model.work import Work
from ijepa_ds.plan.activations import activations_of
from ijepa_ds.plan.spread import Spread

_STAGE_0_BUCKET = 500_000_000  # elements of the buffer that all-reduces gradients (deepspeed/runtime/engine.py)


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on its device except for `host`.

    Attributes:
        weights: Context encoder and predictor, as the forward pass uses them.
        target: Target encoder.
        masters: Float32 master weights.
        moments: The two moments of AdamW.
        ema: Float32 moving average of the encoder.
        gradients: Peak of the gradients, before they are reduced.
        gradients_kept: Gradients that remain for the optimizer.
        buffers: Gradient buckets, and weights that stage 3 has gathered.
        activations: Peak of the activations of one micro-batch.
        activations_checkpointed: The same with full activation checkpointing.
        activations_whole: The same without activation checkpointing.
        loader: Prefetched images, without the decoder's scratch memory.
        host: Bytes offloaded to main memory or files.
        peak: Peak of the device's memory.
    """

    weights: float
    target: float
    masters: float
    moments: float
    ema: float
    gradients: float
    gradients_kept: float
    buffers: float
    activations: float
    activations_checkpointed: float
    activations_whole: float
    loader: float
    host: float
    peak: float

    def parts(self) -> dict[str, float]:
        """Return the bytes of each part, for tables."""
        names = ("weights", "target", "masters", "moments", "ema", "gradients", "buffers", "activations", "loader")
        return {name: getattr(self, name) for name in names}

    @property
    def states(self) -> float:
        """Bytes that remain between steps: weights, target, masters, moments and moving average."""
        return self.weights + self.target + self.masters + self.moments + self.ema


def memory_of(work: Work, spread: Spread, prefetch: int = 0) -> Memory:
    """Return the bytes of one rank.

    Args:
        work: Shapes of the run.
        spread: Distribution over devices.
        prefetch: Prefetched micro-batches of images.
    """
    every, encoder, b = work.count(), work.count("encoder"), work.weight_bytes
    share = 1.0 if spread.stage == 0 else 1.0 / spread.world
    weight_share = 1.0 / spread.world if spread.stage == 3 else 1.0
    copies = spread.stage > 0 or b == 2  # stage 0 in float32 needs no second copy of the weights
    masters, moments = 4.0 * every * share * copies, 8.0 * every * share
    ema, weights, target, host = 4.0 * encoder * share, b * every * weight_share, b * encoder * weight_share, 0.0
    if b == 4 and spread.stage < 3 and not spread.offload:
        ema = 0.0  # a float32 target encoder needs no second copy
    if spread.offload:  # the EMA is stored with the masters
        host, masters, moments, ema = masters + moments + ema, 0.0, 0.0, 0.0
    if spread.offload_weights:
        host, weights, target = host + weights + target, 0.0, 0.0
    if spread.hpz > 1:
        weights += b * every / spread.hpz
    gradients = _gradients(work, spread)
    buffers = _buffers(work, spread)
    whole = activations_of(replace(work, checkpointing="none"), spread.micro_batch)
    checkpointed = activations_of(replace(work, checkpointing="full"), spread.micro_batch)
    activations = activations_of(work, spread.micro_batch)
    memory = Memory(
        weights=weights,
        target=target,
        masters=masters,
        moments=moments,
        ema=ema,
        gradients=gradients,
        gradients_kept=gradients if spread.stage != 1 else gradients / spread.world,
        buffers=buffers,
        activations=activations,
        activations_checkpointed=checkpointed,
        activations_whole=whole,
        loader=float(prefetch * spread.micro_batch * work.patches * 3 * work.patch_size**2),
        host=host,
        peak=0.0,
    )
    return replace(memory, peak=memory.states + memory.loader + _peak_beside_states(work, spread, memory))


def _gradients(work: Work, spread: Spread) -> float:
    every, b = work.count(), work.weight_bytes
    accumulated = 4 if spread.accumulation > 1 and b == 2 and spread.stage > 0 else b
    if spread.stage <= 1:
        # with bfloat16 and accumulation, stage 1 also keeps a float32 sum of all gradients (BF16_Optimizer)
        return every * (b + (4 if accumulated > b else 0))
    return every * accumulated / spread.world


def _buffers(work: Work, spread: Spread) -> float:
    every, b = work.count(), work.weight_bytes
    if spread.stage == 0:
        return b * float(min(every, _STAGE_0_BUCKET))
    buckets = b * float(spread.bucket) * (1 + spread.double_bucket) if spread.contiguous else 0.0
    return buckets + (b * gathered_elements(work, spread) if spread.stage == 3 else 0.0)


def gathered_elements(work: Work, spread: Spread) -> float:
    """Return the peak number of elements of gathered weights under stage 3.

    These are the kept modules, two modules in use, and the prefetched weights twice, because DeepSpeed copies every
    weight out of the receive buffer.
    """
    if spread.world == 1:
        return 0.0
    total = work.count() + work.count("encoder")
    largest = max(_modules(work).values())
    target, trained = kept_elements(work, spread)
    return min(total, target + trained + 2 * largest) + min(spread.prefetch, total)


class Kept(NamedTuple):
    """Elements that stay gathered from the forward to the backward pass: of the target encoder, of trained networks."""

    target: int
    trained: int


def kept_elements(work: Work, spread: Spread) -> Kept:
    """Return the elements that stage 3 does not release after their forward pass.

    Example: an encoder of two modules E1 = 30 and E2 = 10 elements, a target encoder T1, T2 of the same sizes, and a
    predictor P1 = P2 = 5. DeepSpeed's trace of the forward pass is

        T T1 T2   E E1 E2   P P1 P2   model

    It lists a network once as a whole (T, E, P) and once by its modules. The last entry is the start of the backward
    pass, which enters the whole model: DeepSpeed takes it for the next use of every module, even of the target encoder,
    which has no backward pass. The reuse distance of a module is the number of elements traced up to that entry:

        P2: 0    P1: P2 = 5    E2: P + P1 + P2 = 20     E1: E2 + 20 = 30
        T2: E + E1 + E2 + P + P1 + P2 = 100             T1: T2 + 100 = 110

    A module stays gathered if its distance is less than `spread.reuse`, here 25. Buffers over time (## in use,
    == kept gathered, .. released):

        pass     forward              backward
        module   T1 T2 E1 E2 P1 P2    P2 P1 E2 E1
        T2       .. ## .. .. .. ..    .. .. .. ..    100 >= 25
        E1       .. .. ## .. .. ..    .. .. .. ##     30 >= 25: gathered twice
        E2       .. .. .. ## == ==    == == ## ..     20 < 25
        P1       .. .. .. .. ## ==    == ## .. ..      5 < 25
        P2       .. .. .. .. .. ##    ## .. .. ..      0 < 25

    The result is (target 0, trained E2 + P1 + P2 = 20). Blocks are leaf modules here, so the trace has no smaller parts.
    """
    sizes = _modules(work)
    encoder = [numel for name, numel in sizes.items() if name.startswith("encoder.")]
    predictor = [numel for name, numel in sizes.items() if name.startswith("predictor.")]
    predictor_to_backward = 0
    encoder_to_backward = 2 * sum(predictor)
    target_to_backward = 2 * sum(encoder) + 2 * sum(predictor)
    return Kept(
        target=_kept_of(encoder, target_to_backward, spread.reuse),
        trained=_kept_of(predictor, predictor_to_backward, spread.reuse) + _kept_of(encoder, encoder_to_backward, spread.reuse),
    )


def _kept_of(modules: list[int], to_backward: int, reuse: int) -> int:
    """Return the elements of a network's modules with a reuse distance below `reuse`.

    Args:
        modules: Elements of each module, in forward order.
        to_backward: Elements traced between the network's last module and the start of the backward pass.
        reuse: Limit of the distance.
    """
    total, distance = 0, to_backward
    for numel in reversed(modules):
        if distance >= reuse:
            break
        total, distance = total + numel, distance + numel
    return total


def _modules(work: Work) -> dict[str, int]:
    """Return the elements of each module, in forward order."""
    sizes: dict[str, int] = {}
    for parameter in work.parameters:
        key = f"{parameter.part}.{parameter.module}"
        sizes[key] = sizes.get(key, 0) + parameter.numel
    return sizes


def _peak_beside_states(work: Work, spread: Spread, memory: Memory) -> float:
    """Return the largest memory beside the states at three moments of a step.

    Start of the backward pass: activations and buffers. End of the backward pass: gradients and buffers. Optimizer step:
    gradients and their float32 copies.
    """
    start = memory.activations + (memory.buffers if spread.stage > 0 else 0.0)
    end = memory.gradients + memory.buffers
    # AdamW gets float32 copies of bfloat16 gradients: all of them at stage 0, else the rank's share
    step = memory.gradients_kept + memory.masters
    if spread.stage == 3:  # the rank's share of the gradients is allocated once
        b, bucket = work.weight_bytes, min(spread.bucket, work.count())
        start += memory.gradients
        # sorting a full bucket by ranks and dividing it takes two more copies
        target = kept_elements(work, spread).target if spread.world > 1 else 0
        end = memory.gradients + b * float(spread.bucket * spread.contiguous + target + 2 * bucket)
    return max(start, end, step)
