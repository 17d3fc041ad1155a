"""The predictor and its loss in pieces, each with its backward pass at once: less memory, the same sums.

Sequences of the predictor, a target block of an image each, do not see each other. What a piece of them has kept is let go
before the next begins, so that one piece is held at a time; nothing is computed twice. Gradients of weights are sums over the
pieces, rounded to the weights' type after each, so this is for float32.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

_BYTES = 192 << 20  # about the most that a piece keeps: small networks are not cut, where that would cost more than it saves
_KEPT = 40  # bytes that a block keeps of a token and a number of its width, at least (`vit_lean`)
_FEWEST = 512  # tokens of a piece, for fast products and few sums of gradients (docs/LOG.md)


def predicted(predictor: nn.Module, z: Tensor, context: Tensor, targets: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and prediction, as `IJEPA.forward` computes them from all sequences at once.

    Args:
        predictor: a `vit.Predictor` whose parameters are whole (no ZeRO-3).
        z: `[B, C, Kc, D]` encoded contexts.
        context: int64 `[B, C, Kc]`.
        targets: int64 `[B, M, Kt]`.
        wanted: `[B, M, Kt, D]`, what is to be predicted.

    Returns:
        The loss, a scalar with a backward pass, and the prediction `[B, C, M, Kt, D]` without.
    """
    named = {name: parameter for name, parameter in predictor.named_parameters() if parameter.requires_grad}
    return _Pieces.apply(predictor, list(named), z, context, targets, wanted, *named.values())


def most_tokens(predictor: nn.Module) -> int:
    """Tokens of a piece, at most."""
    blocks: Any = predictor.predictor_blocks
    width = sum(len(block.norm1.weight) for block in blocks)
    return max(_FEWEST, _BYTES // (_KEPT * max(1, width)))


def split(context: Tensor, targets: Tensor, most: int) -> list[tuple[slice, slice]]:
    """Images and target blocks of every piece: as many blocks as make `most` tokens, or of one block as many images."""
    (b, c, kc), (m, kt) = context.shape, targets.shape[1:]
    tokens = b * c * (kc + kt)  # of a block
    images = math.ceil(b / math.ceil(tokens / most))
    blocks = math.ceil(m / math.ceil(m / max(1, most // tokens)))
    return [(slice(i, i + images), slice(j, j + blocks)) for i in range(0, b, images) for j in range(0, m, blocks)]


class _Pieces(torch.autograd.Function):
    """Computes the gradients in the forward pass, and hands them over in the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        predictor: nn.Module,
        names: list[str],
        z: Tensor,
        context: Tensor,
        targets: Tensor,
        wanted: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `predicted`."""
        # Leaves of their own: gradients add up in them, and nobody's hooks on the parameters see that.
        leaves = {name: p.detach().requires_grad_() for name, p in zip(names, parameters, strict=True)}
        source = z.detach().requires_grad_()
        total = torch.zeros((), device=z.device)
        prediction = wanted.new_empty(*context.shape[:2], *wanted.shape[1:])
        for images, blocks in split(context, targets, most_tokens(predictor)):
            with torch.enable_grad():
                one = functional_call(predictor, leaves, (source[images], context[images], targets[images, blocks]))
                told = wanted[images, None, blocks].expand(one.shape)
                loss = F.smooth_l1_loss(one.float(), told, reduction="sum") / prediction.numel()
                loss.backward()
            total += loss.detach()
            prediction[images, :, blocks] = one.detach()
        ctx.mark_non_differentiable(prediction)
        ctx.gradients = [source.grad, *(leaf.grad for leaf in leaves.values())]
        return total, prediction

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Of z and the parameters, times that of the loss."""
        gradients, ctx.gradients = ctx.gradients, None  # the only reference: they become the parameters' own, uncopied
        if gradient.device.type != "cpu" or float(gradient) != 1.0:  # elsewhere a look at the value would wait for it
            torch._foreach_mul_(gradients, gradient)
        of_z, *of_parameters = gradients
        del gradients
        return None, None, of_z, None, None, None, *of_parameters
