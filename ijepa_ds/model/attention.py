"""Attention weights of networks whose fused kernel never shows them: its inputs are seen, and the weights computed again.

Only where they are asked for: a picture, or a probe of a run. It works for every kind of block that calls
`scaled_dot_product_attention`: rotary positions and normed queries and keys are in what the kernel gets. Where the fused kernel
is switched off (`cpu.tune`), the softmax of timm's plain products is seen instead.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Tap(TorchFunctionMode):
    """While entered, `take(number of the attention, weights)` is called for each; `weights(n)` are those of n images."""

    def __init__(self, take: Callable[[int, Callable[[int | None], Tensor]], None]) -> None:
        super().__init__()
        self._take, self._calls = take, 0
        self._stance = ExitStack()

    def __enter__(self) -> Any:
        """Compiled blocks (`model.compile`) show nothing, and looking would compile them anew: they run as they are."""
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and to ask would load the compiler
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Blocks run compiled again."""
        super().__exit__(*error)
        self._stance.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what attention gets; change nothing."""
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            q, k = args[0].detach(), args[1].detach()
            self._take(self._calls, lambda images: weights_of(q[:images], k[:images]))
        elif func is torch.Tensor.softmax and result.ndim == 4:
            self._take(self._calls, lambda images: result.detach()[:images].float())
        else:
            return result
        self._calls += 1
        return result


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights, in float32.

    Args:
        q: queries [B, heads, N, d].
        k: keys [B, heads, N, d].

    Returns:
        [B, heads, N (queries), N (keys)]; every row sums to 1.
    """
    return (q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)


def entropy(weights: Tensor) -> Tensor:
    """How widely queries look: mean entropy over log N, between 0 (one patch) and 1 (all alike).

    Args:
        weights: [B, heads, N, N].

    Returns:
        A scalar.
    """
    p = weights.clamp(min=1e-12)
    return -(p * p.log()).sum(dim=-1).mean() / math.log(max(2, weights.shape[-1]))


class EntropyProbe(Tap):
    """Entered around a forward pass: mean attention entropy of its first attentions, for a few images; stays on the device."""

    def __init__(self, calls: int, images: int = 4) -> None:
        """Watch the first `calls` attentions, those of the first `images` images."""
        super().__init__(self._measure)
        self._first, self._images, self._found = calls, images, []  # type: ignore[var-annotated]

    def _measure(self, number: int, weights: Callable[[int | None], Tensor]) -> None:
        if number < self._first:
            with torch.no_grad():
                self._found.append(entropy(weights(self._images)))

    def values(self) -> list[float]:
        """One number an attention, in order of depth; waits for the device."""
        return torch.stack(self._found).tolist() if self._found else []


@torch.no_grad()
def maps(encoder: nn.Module, images: Tensor, layer: int) -> Tensor:
    """Attention weights between the patches in one block of an encoder, over whole images.

    Args:
        encoder: an `ijepa_ds.vit.Encoder`.
        images: [B, 3, H, W], normalised.
        layer: from 0; -1 is the last.

    Returns:
        float32 [B, heads, N, N]; what goes to registers is left out, so rows sum to at most 1.

    Raises:
        ValueError: there is no such block.
    """
    size: Any = encoder.size
    if not -size.depth <= layer < size.depth:
        raise ValueError(f"--layer {layer}: the encoder has blocks 0 to {size.depth - 1} (-1 is the last)")
    found: list[Tensor] = []

    def take(number: int, weights: Callable[[int | None], Tensor]) -> None:
        if number == layer % size.depth:
            found.append(weights(None))

    with Tap(take):
        encoder(images)
    return found[0][..., size.registers :, size.registers :]
