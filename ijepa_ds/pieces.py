"""The predictor and its loss in pieces, each with its backward pass at once: less memory, the same sums.

Sequences of the predictor, a target block of an image each, do not see each other. What a piece of them has kept is let go
before the next begins, so that one piece is held at a time; nothing is computed twice. Gradients of weights are sums over the
pieces, rounded to the weights' type after each, so this is for float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

_TOKENS = 512  # about the most in a piece: enough for fast products, while adding up gradients stays a hundredth (docs/LOG.md)


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


def _split(context: Tensor, targets: Tensor) -> Iterator[tuple[slice, slice]]:
    """Images and target blocks of every piece: one block, and as many images as make about `_TOKENS` tokens."""
    (b, c, kc), (m, kt) = context.shape, targets.shape[1:]
    images = math.ceil(b / math.ceil(b * c * (kc + kt) / _TOKENS))
    for first in range(0, b, images):
        for block in range(m):
            yield slice(first, first + images), slice(block, block + 1)


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
        for images, blocks in _split(context, targets):
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
