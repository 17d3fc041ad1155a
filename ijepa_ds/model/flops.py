"""Matrix-product FLOPs of one image, by part. A multiplication and an addition count two; the rest is below one percent."""

from __future__ import annotations

from dataclasses import dataclass

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size
from ijepa_ds.model.work import Tokens, Work, work_of


@dataclass(frozen=True)
class Flops:
    """FLOPs of one image.

    Attributes:
        target: the target encoder's forward pass over all patches.
        context: the context encoder, forward and backward.
        predictor: forward and backward.
        recomputed: what a device computes beyond that: checkpointed blocks again, and the attention matrix again in
            the fused kernel's backward pass; less the gradient of the pixels, which nobody needs.
    """

    target: float
    context: float
    predictor: float
    recomputed: float

    @property
    def model(self) -> float:
        """What the method needs: the numerator of MFU (Chowdhery et al. 2022, appendix B)."""
        return self.target + self.context + self.predictor

    @property
    def executed(self) -> float:
        """What the device does."""
        return self.model + self.recomputed


def flops_of(work: Work, fused_attention: bool = True) -> Flops:
    """FLOPs of one image of a run.

    Args:
        work: shapes.
        fused_attention: the kernel that never stores the attention matrix and computes it again in the backward pass.
    """
    kc, kt = work.tokens.context, work.tokens.target
    sequence, sequences = kc + kt, work.contexts * work.targets
    patch = 2.0 * work.patches * 3 * work.patch_size**2 * work.size.width
    context, context_attention = (work.contexts * x for x in blocks(work.size, kc + work.size.registers))
    predictor, predictor_attention = (sequences * x for x in blocks(work.predictor, sequence))
    embed = 2.0 * work.contexts * kc * work.size.width * work.predictor.width
    head = 2.0 * sequences * kt * work.size.width * work.predictor.width
    again = 0.0
    if work.checkpointing == "full":  # a block's last layer is not computed again, when nothing needs its result
        again += context * (1 - _last_layer(work.size)) + context_attention
        again += predictor * (1 - _last_layer(work.predictor)) + predictor_attention
    if fused_attention:  # five products in the backward pass instead of four; the forward pass has two
        again += (context_attention + predictor_attention) / 2
    return Flops(
        target=patch + sum(blocks(work.size, work.patches + work.size.registers)),
        context=3 * (patch + context + context_attention),
        predictor=3 * (embed + predictor + predictor_attention + head),
        recomputed=again - patch,
    )


def training_flops(cfg: Config, context: int, target: int) -> float:
    """`Flops.model` of an image in a step of a run whose contexts have `context` patches and whose targets `target`."""
    return flops_of(work_of(cfg, Tokens(context, target, context, target))).model


def blocks(size: Size, tokens: float) -> tuple[float, float]:
    """Forward FLOPs of all blocks for one sequence: of the Linear layers, and of attention's two products."""
    d = size.width
    return (
        size.depth * 2.0 * tokens * _linear(size),
        size.depth * 4.0 * tokens * tokens * d,
    )


def _linear(size: Size) -> int:
    """Weights of a block's Linear layers."""
    return 4 * size.width**2 + (3 if size.swiglu else 2) * size.width * size.mlp_hidden


def _last_layer(size: Size) -> float:
    """Share of a block's Linear layers that its last one, the MLP's second, has; LayerScale needs its result."""
    return 0.0 if size.layer_scale else size.width * size.mlp_hidden / _linear(size)
