"""Attention weights of a ViT whose fused kernel never shows them: computed again from what its blocks took.

Only where they are asked for: a picture, or a probe of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def weights_of(attention: Any, qkv: Tensor) -> Tensor:
    """Attention weights from the output of a timm Attention's `qkv` layer.

    Args:
        attention: timm's module: its heads, scale and norms are used.
        qkv: [B, N, 3 * D].

    Returns:
        float32 [B, heads, N (queries), N (keys)]; every row sums to 1.
    """
    b, n, _ = qkv.shape
    q, k, _ = qkv.reshape(b, n, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return (attention.scale * q.float() @ k.float().transpose(-2, -1)).softmax(dim=-1)


def entropy(weights: Tensor) -> Tensor:
    """How widely queries look: mean entropy over log N, between 0 (one patch) and 1 (all alike).

    Args:
        weights: [B, heads, N, N].

    Returns:
        A scalar.
    """
    p = weights.clamp(min=1e-12)
    return -(p * p.log()).sum(dim=-1).mean() / math.log(max(2, weights.shape[-1]))


@contextmanager
def tapped(blocks: Sequence[nn.Module], take: Callable[[int, Any, Tensor], None]) -> Iterator[None]:
    """Call `take(number of the block, its attention module, output of qkv [B, N, 3 * D])` in every forward pass."""
    handles = []
    for number, block in enumerate(blocks):
        attention: Any = block.attn

        def hook(_: Any, __: Any, output: Tensor, number: int = number, attention: Any = attention) -> None:
            take(number, attention, output.detach())

        handles.append(attention.qkv.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def maps(encoder: nn.Module, images: Tensor, layer: int) -> Tensor:
    """Attention weights of one block of an encoder over whole images.

    Args:
        encoder: an `ijepa_ds.vit.Encoder`.
        images: [B, 3, H, W], normalised.
        layer: from 0; -1 is the last.

    Returns:
        float32 [B, heads, N, N].

    Raises:
        ValueError: there is no such block.
    """
    blocks: Any = encoder.blocks
    if not -len(blocks) <= layer < len(blocks):
        raise ValueError(f"--layer {layer}: the encoder has blocks 0 to {len(blocks) - 1} (-1 is the last)")
    found: list[Tensor] = []
    with tapped([blocks[layer]], lambda _, attention, qkv: found.append(weights_of(attention, qkv))):
        encoder(images)
    return found[0]
