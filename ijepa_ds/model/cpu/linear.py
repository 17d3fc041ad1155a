"""Linear layers through oneDNN, on processors where it is faster than PyTorch's default library.

PyTorch multiplies float32 matrices with MKL, which uses AVX-512 only on Intel processors. On an AMD EPYC (Zen 5), MKL reaches
a quarter to a half of the rate of oneDNN, which PyTorch includes, too (docs/performance.md). Both compute in float32.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@functools.cache
def onednn_is_faster() -> bool:
    """Whether float32 products use oneDNN: AVX-512 and not Intel. It is not timed, so that all runs choose the same."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` without gradient, float32 on the CPU: `[..., K]`, `[N, K]`, `[N]` -> `[..., N]`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Product(torch.autograd.Function):
    """`product` with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        """Compute `product`."""
        # Save the parameter, not a view: ZeRO-3 empties it after this call and fills it again for the backward pass.
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # type: ignore[override]
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        dx = product(gradient, weight.t()) if ctx.needs_input_grad[0] else None
        flat = gradient.flatten(0, -2)
        dw = outer(flat, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return dx, dw, flat.sum(dim=0) if ctx.needs_input_grad[2] else None


def outer(gradient: Tensor, x: Tensor) -> Tensor:
    """`gradient.T @ x`: `[M, N]`, `[M, K]` -> `[N, K]`. oneDNN needs a contiguous first factor, so the cheaper copy is made."""
    (m, n), k = gradient.shape, x.shape[1]
    if m * n <= m * k + n * k:
        return product(gradient.t(), x.t())
    return product(x.t(), gradient.t()).t()


class Linear(nn.Linear):
    """`nn.Linear` that uses `Product` for float32."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the layer: `[..., K]` -> `[..., N]`."""
        usual = x.dtype != torch.float32 or self.weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        return super().forward(x) if usual or x.ndim < 2 else Product.apply(x, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Change every `nn.Linear` in `model` to `Linear`; parameters and their names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
