"""Matrix-product FLOPs of one image, by part; a multiply-add counts as two, other operations are below one percent."""

from __future__ import annotations

from dataclasses import dataclass

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size
from ijepa_ds.model.work import Tokens, Work, work_of


@dataclass(frozen=True)
class Flops:
    """FLOPs of one image.

    Attributes:
        target: Target encoder, forward pass over all patches.
        context: Context encoder, forward and backward passes.
        predictor: Predictor, forward and backward passes.
        recomputed: Recomputation of checkpointed blocks and, in the fused kernel's backward pass, of the attention matrix;
            minus the gradient of the pixels, which is not computed.
        attention: The part of `executed` in attention's two products.
    """

    target: float
    context: float
    predictor: float
    recomputed: float
    attention: float

    @property
    def model(self) -> float:
        """FLOPs of the method: the numerator of MFU (Chowdhery et al. 2022, appendix B)."""
        return self.target + self.context + self.predictor

    @property
    def executed(self) -> float:
        """FLOPs that the device executes."""
        return self.model + self.recomputed


def flops_of(work: Work, fused_attention: bool = True) -> Flops:
    """Return the FLOPs of one image of a run.

    Args:
        work: Shapes of the run.
        fused_attention: Use of a kernel that recomputes the attention matrix in the backward pass.
    """
    kc, kt = work.tokens.context, work.tokens.target
    sequence, sequences = kc + kt, work.contexts * work.targets
    patch = 2.0 * work.patches * work.size.channels * work.patch_size**2 * work.size.width
    context, context_attention = (work.contexts * x for x in blocks(work.size, kc + work.size.registers))
    predictor, predictor_attention = (sequences * x for x in blocks(work.predictor, sequence))
    embed = 2.0 * work.contexts * kc * work.size.width * work.predictor.width
    # the covariance matrix of an image's contexts, and their projections
    spread = 2.0 * work.contexts * work.projection * (work.size.width + 2 * work.projection)
    predicted = sequence if work.predicts_context else kt
    head = 2.0 * sequences * predicted * work.prediction_width * work.predictor.width
    recomputed = 0.0
    if work.checkpointing == "full":  # the last layer of a block is not recomputed if its result is unused
        recomputed += context * (1 - _last_layer(work.size)) + context_attention
        recomputed += predictor * (1 - _last_layer(work.predictor)) + predictor_attention
    if fused_attention:  # five products in the backward pass instead of four; the forward pass has two
        recomputed += (context_attention + predictor_attention) / 2
    target, target_attention = blocks(work.target_size, work.patches + work.size.registers)
    rounds = 3 + (work.checkpointing == "full") + fused_attention / 2
    return Flops(
        target=patch + target + target_attention,
        context=3 * (patch + context + context_attention),
        predictor=3 * (embed + predictor + predictor_attention + head + spread),
        recomputed=recomputed - patch,
        attention=target_attention + rounds * (context_attention + predictor_attention),
    )


def training_flops(cfg: Config, context: int, target: int) -> float:
    """Return `Flops.model` of an image in a step with `context` patches per context and `target` per target block."""
    return flops_of(work_of(cfg, Tokens(context, target, context, target))).model


def blocks(size: Size, tokens: float) -> tuple[float, float]:
    """Return the forward FLOPs of all blocks for one sequence: Linear layers, and attention's two matrix products."""
    d = size.width
    return (
        size.depth * 2.0 * tokens * _linear(size),
        size.depth * 4.0 * tokens * tokens * d,
    )


def _linear(size: Size) -> int:
    """Return the number of weights in a block's Linear layers."""
    return 4 * size.width**2 + (3 if size.swiglu else 2) * size.width * size.mlp_hidden


def _last_layer(size: Size) -> float:
    """Return the share of a block's Linear FLOPs in its last layer; 0 with LayerScale, whose backward needs the result."""
    return 0.0 if size.layer_scale else size.width * size.mlp_hidden / _linear(size)
