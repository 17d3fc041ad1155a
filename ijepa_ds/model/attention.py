"""Attention weights of networks with fused attention: a hook records the kernel's inputs and recomputes the weights.

The hook works for every block that calls `scaled_dot_product_attention`, whose inputs already include rotary positions
and normalised queries and keys. Without the fused kernel (`cpu.tune`) it records the softmax of timm's plain attention.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class AttentionHook(TorchFunctionMode):
    """A context manager that calls `callback(layer, weights)` for every attention.

    `layer` counts from 0; `weights(n)` returns the float32 attention weights [n, heads, N, N] of the first n images.
    """

    def __init__(self, callback: Callable[[int, Callable[[int | None], Tensor]], None]) -> None:
        super().__init__()
        self._callback, self._calls = callback, 0
        self._stance = ExitStack()

    def __enter__(self) -> Any:
        """Start recording; compiled blocks (`model.compile`) run eagerly meanwhile, because they bypass the hook."""
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and the call would import the compiler
            self._stance.enter_context(torch.compiler.set_stance("force_eager"))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Stop recording; blocks run compiled again."""
        super().__exit__(*error)
        self._stance.close()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function and record attention inputs; the result does not change."""
        result = func(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            q, k = args[0].detach(), args[1].detach()
            self._callback(self._calls, lambda images: weights_of(q[:images], k[:images]))
        elif func is torch.Tensor.softmax and result.ndim == 4:
            self._callback(self._calls, lambda images: result.detach()[:images].float())
        else:
            return result
        self._calls += 1
        return result


def weights_of(q: Tensor, k: Tensor) -> Tensor:
    """Return attention weights in float32.

    Args:
        q: queries [B, heads, N, d].
        k: keys [B, heads, N, d].

    Returns:
        [B, heads, N (queries), N (keys)]; every row sums to 1.
    """
    return (q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)


def entropy(weights: Tensor) -> Tensor:
    """Return the mean attention entropy divided by log N, between 0 (one patch) and 1 (uniform).

    Args:
        weights: [B, heads, N, N].

    Returns:
        A scalar.
    """
    p = weights.clamp(min=1e-12)
    return -(p * p.log()).sum(dim=-1).mean() / math.log(max(2, weights.shape[-1]))


class EntropyProbe(AttentionHook):
    """A context manager that measures the attention entropy of a forward pass without waiting for the device."""

    def __init__(self, calls: int, images: int = 4) -> None:
        """Measure the first `calls` attentions, on the first `images` images."""
        super().__init__(self._measure)
        self._num_calls, self._images, self._found = calls, images, []  # type: ignore[var-annotated]

    def _measure(self, number: int, weights: Callable[[int | None], Tensor]) -> None:
        if number < self._num_calls:
            with torch.no_grad():
                self._found.append(entropy(weights(self._images)))

    def values(self) -> list[float]:
        """Return the entropy of each attention in order of depth; waits for the device."""
        return torch.stack(self._found).tolist() if self._found else []


@contextmanager
def during(module: nn.Module, hook: AttentionHook) -> Iterator[AttentionHook]:
    """Enter `hook` whenever `module` runs.

    What runs beside it stays compiled. With activation checkpointing it must: a block that runs eagerly in the forward pass
    and compiled in the backward pass saves other tensors.
    """

    def enter(*_: object) -> None:
        hook.__enter__()

    def leave(*_: object) -> None:
        hook.__exit__(None, None, None)

    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield hook
    finally:
        for registered in hooks:
            registered.remove()


@torch.no_grad()
def maps(encoder: nn.Module, images: Tensor, layer: int) -> Tensor:
    """Return the attention weights between patches in one block of an encoder.

    Args:
        encoder: An `ijepa_ds.model.vit.Encoder`.
        images: [B, 3, H, W], normalised.
        layer: Block number from 0; -1 is the last.

    Returns:
        float32 [B, heads, N, N]; rows sum to at most 1, because registers are excluded.

    Raises:
        ValueError: There is no such block.
    """
    size: Any = encoder.size
    if not -size.depth <= layer < size.depth:
        raise ValueError(f"--layer {layer}: the encoder has blocks 0 to {size.depth - 1} (-1 is the last)")
    found: list[Tensor] = []

    def record(number: int, weights: Callable[[int | None], Tensor]) -> None:
        if number == layer % size.depth:
            found.append(weights(None))

    with AttentionHook(record):
        encoder(images)
    return found[0][..., size.registers :, size.registers :]
