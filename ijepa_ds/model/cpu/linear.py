"""Matrix products through oneDNN, on processors where torch's own library leaves half of their arithmetic unused.

torch multiplies float32 matrices with MKL, which takes AVX-512 on Intel's processors only: on an AMD EPYC (Zen 5) it reaches a
quarter to a half of what oneDNN does, which torch has in it too (measured: docs/performance.md). Both are float32 throughout.
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
    """Whether float32 products should go through oneDNN: with AVX-512, but not made by Intel. No timing: the same every run."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` without gradient: `[..., K]`, `[N, K]`, `[N]` -> `[..., N]`, float32, on the CPU."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Product(torch.autograd.Function):
    """`product` with gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        """As `product`."""
        # The parameter itself is kept, never a view of it: ZeRO-3 empties it now, and fills it again for the backward pass.
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
    """`gradient.T @ x`: `[M, N]`, `[M, K]` -> `[N, K]`. oneDNN wants its first factor row by row: copied is what is smaller."""
    (m, n), k = gradient.shape, x.shape[1]
    if m * n <= m * k + n * k:
        return product(gradient.t(), x.t())
    return product(x.t(), gradient.t()).t()


class Linear(nn.Linear):
    """`nn.Linear` by `Product` for float32."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """`[..., K]` -> `[..., N]`."""
        usual = x.dtype != torch.float32 or self.weight.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        return super().forward(x) if usual or x.ndim < 2 else Product.apply(x, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Have every `nn.Linear` in `model` compute its products by oneDNN; parameters and names stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
