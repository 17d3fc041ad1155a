"""Bytes of a rank by part. The formulas follow the source of DeepSpeed 0.19 and measurements (docs/plan.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ijepa_ds.model.work import Work
from ijepa_ds.plan.activations import activations_of
from ijepa_ds.plan.gathered import persistent_elements
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.timeline import Moment, buffers_of, moments_of


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank, on its device except for `host`.

    Attributes:
        weights: Context encoder and predictor, as the forward pass uses them.
        target: Target encoder.
        masters: Float32 master weights.
        moments: The two moments of AdamW.
        ema: Float32 moving average of the encoder.
        gradients: The largest set of gradients, before they are reduced or as their float32 sum.
        kept: Gradients and buckets that are allocated for good, beside the states.
        buffers: At the peak: gradient buckets, copies for the reduction and the optimizer, gathered and secondary weights.
        activations: Peak of the activations of one micro-batch.
        activations_checkpointed: The same with full activation checkpointing.
        activations_whole: The same without activation checkpointing.
        loader: Prefetched images, without the decoder's scratch memory.
        host: Bytes offloaded to main memory or files.
        peak: Peak of the device's memory: the largest of `moments_of_a_step`, with states and loader.
        moments_of_a_step: Bytes beside the states at every moment of a step, with the buffers that exist then.
    """

    weights: float
    target: float
    masters: float
    moments: float
    ema: float
    gradients: float
    kept: float
    buffers: float
    activations: float
    activations_checkpointed: float
    activations_whole: float
    loader: float
    host: float
    peak: float
    moments_of_a_step: tuple[Moment, ...] = ()

    def parts(self) -> dict[str, float]:
        """Return the bytes of each part, for tables."""
        names = ("weights", "target", "masters", "moments", "ema", "gradients", "buffers", "activations", "loader")
        return {name: getattr(self, name) for name in names}

    @property
    def when(self) -> str:
        """The moment of the peak."""
        return max(self.moments_of_a_step, key=lambda moment: moment.bytes).name

    @property
    def at_rest(self) -> float:
        """Bytes between steps."""
        return self.states + self.kept

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
    weights += b * persistent_elements(work, spread)
    buffers = buffers_of(work, spread, masters)
    moments_ = moments_of(buffers, spread)
    largest = max(moments_, key=lambda moment: moment.bytes)
    memory = Memory(
        weights=weights,
        target=target,
        masters=masters,
        moments=moments,
        ema=ema,
        gradients=max((held.bytes for held in buffers if held.name.startswith("gradients")), default=0.0),
        kept=sum(held.bytes for held in buffers if held.permanent),
        buffers=sum(held.bytes for held in largest.held if not held.name.startswith(("gradients", "activations"))),
        activations=activations_of(work, spread.micro_batch),
        activations_checkpointed=activations_of(replace(work, checkpointing="full"), spread.micro_batch),
        activations_whole=activations_of(replace(work, checkpointing="none"), spread.micro_batch),
        loader=float(prefetch * spread.micro_batch * work.patches * work.pixel_bytes * work.patch_size**2),
        host=host,
        peak=0.0,
        moments_of_a_step=tuple(moments_),
    )
    return replace(memory, peak=memory.states + memory.loader + largest.bytes)
