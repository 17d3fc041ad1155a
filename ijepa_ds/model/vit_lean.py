"""Transformer blocks that keep less for their backward pass: float32, on the CPU.

Most products take in the result of a norm or a GELU. Neither is kept, both are computed again from what went into them: 3840
instead of 6144 numbers a token for a block of width 384. Products are not repeated, which is what `model.recompute` does.
Names, values and gradients stay.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ijepa_ds.model.blocks import LayerNorm
from ijepa_ds.model.cpu import linear

Gradients = tuple[Tensor | None, ...]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, onednn: bool) -> Tensor:
    """`x @ weight.T + bias`: `[..., K]`, `[N, K]`, `[N]` -> `[..., N]`."""
    return linear.product(x, weight, bias) if onednn else F.linear(x, weight, bias)


def _of_weights(ctx: Any, first: int, gradient: Tensor, x: Tensor) -> Gradients:
    """Gradients of weight and bias, which are arguments `first` and `first + 1` of a function: `[..., N]`, `[..., K]`."""
    flat, rows = gradient.flatten(0, -2), x.flatten(0, -2)
    outer = linear.outer if ctx.onednn else lambda a, b: a.t() @ b
    weight = outer(flat, rows) if ctx.needs_input_grad[first] else None
    return weight, flat.sum(dim=0) if ctx.needs_input_grad[first + 1] else None


class NormedProduct(torch.autograd.Function):
    """A linear layer of a layer norm, which is computed again in the backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor | None, onednn: bool
    ) -> Tensor:
        """`x: [..., K]`, `scale, shift: [K]`, `weight: [N, K]`, `bias: [N]` -> `[..., N]`."""
        # Parameters themselves are kept, never views of them (`linear.Product`).
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.eps, ctx.onednn = eps, onednn
        return _product(F.layer_norm(x, scale.shape, scale, shift, eps), weight, bias, onednn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:  # type: ignore[override]
        """Of x, scale, shift, weight and bias."""
        x, scale, shift, weight = ctx.saved_tensors
        y, mean, deviation = torch.native_layer_norm(x, list(scale.shape), scale, shift, ctx.eps)
        of_weight, of_bias = _of_weights(ctx, 4, gradient, y)
        del y
        of_y = _product(gradient, weight.t(), None, ctx.onednn)
        wanted = list(ctx.needs_input_grad[:3])
        of_x, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
            of_y, x, list(scale.shape), mean, deviation, scale, shift, wanted
        )
        return of_x, of_scale, of_shift, None, of_weight, of_bias, None


class GeluProduct(torch.autograd.Function):
    """A linear layer of an exact GELU, which is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, onednn: bool) -> Tensor:  # type: ignore[override]
        """`x: [..., K]`, `weight: [N, K]`, `bias: [N]` -> `[..., N]`."""
        ctx.save_for_backward(x, weight)
        ctx.onednn = onednn
        return _product(F.gelu(x), weight, bias, onednn)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:  # type: ignore[override]
        """Of x, weight and bias."""
        x, weight = ctx.saved_tensors
        of_weight, of_bias = _of_weights(ctx, 1, gradient, F.gelu(x))
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = _product(gradient, weight.t(), None, ctx.onednn)  # of the GELU's result, then in place of x
            torch.ops.aten.gelu_backward(of_x, x, grad_input=of_x)
        return of_x, of_weight, of_bias, None


class LeanBlock(Block):
    """timm's block by the functions above."""

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:  # type: ignore[override]
        """`x: [S, N, D]` -> the same."""
        # Without gradients nothing is kept anyway; autocast has its own types.
        usual = x.dtype != torch.float32 or not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if usual or more or named:
            return super().forward(x, *more, **named)
        x = x + self.drop_path1(self.ls1(self._attention(x)))
        return x + self.drop_path2(self.ls2(self._mlp(x)))

    def _attention(self, x: Tensor) -> Tensor:
        attention: Any = self.attn
        s, n, d = x.shape
        qkv = _normed(self.norm1, x, attention.qkv).reshape(s, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v)
        return attention.proj(y.transpose(1, 2).reshape(s, n, d))

    def _mlp(self, x: Tensor) -> Tensor:
        mlp: Any = self.mlp
        hidden = _normed(self.norm2, x, mlp.fc1)
        return GeluProduct.apply(hidden, mlp.fc2.weight, mlp.fc2.bias, type(mlp.fc2) is linear.Linear)


def _normed(norm: Any, x: Tensor, linear: Any) -> Tensor:
    onednn = type(linear) is linear.Linear
    return NormedProduct.apply(x, norm.weight, norm.bias, norm.eps, linear.weight, linear.bias, onednn)


def _fits(block: nn.Module) -> bool:
    """Whether a block is one that `LeanBlock` computes."""
    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return False
    attention, mlp = block.attn, block.mlp
    dropped = (attention.attn_drop, attention.proj_drop, mlp.drop1, mlp.drop2)
    return (
        all(type(norm) is LayerNorm for norm in (block.norm1, block.norm2))
        and all(drop.p == 0 for drop in dropped)
        and all(type(nothing) is nn.Identity for nothing in (attention.norm, mlp.norm))
        and attention.gate is None
        and attention.fused_attn
        and type(mlp.act) is nn.GELU
        and mlp.act.approximate == "none"
    )


def keep_less(model: nn.Module) -> None:
    """Have every block in `model` that can keep less for its backward pass do so; parameters and names stay."""
    for module in model.modules():
        if _fits(module):
            module.__class__ = LeanBlock
