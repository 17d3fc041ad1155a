"""Transformer blocks, based on timm, and the forward pass through a stack of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers import AttentionRope, SwiGLU
from timm.models.vision_transformer import Block, ParallelScalingBlock
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ijepa_ds import counter
from ijepa_ds.config.sizes import Size
from ijepa_ds.model import flat

CHECKPOINTING = ("none", "selective", "full")
_SAVED_OPS = {  # selective checkpointing saves the results of matrix products and fused attention
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # `model.cpu.linear`
    _SAVED_OPS.add(torch.ops.mkldnn._linear_pointwise.default)


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32 for any type of weights; the result has the weights' type, or the type `result`."""

    def __init__(self, width: int, eps: float = 1e-6, result: torch.dtype | None = None, **factory: object) -> None:
        super().__init__(width, eps=eps, **factory)  # type: ignore[arg-type]
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x: [..., D]` -> `[..., D]`."""
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(self.result or self.weight.dtype)


class DropPath(nn.Module):
    """Stochastic depth: skips a residual branch for the sequences that `draw_drops` selects."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep: Tensor | None = None  # [S, 1, 1], 0 or 1 / (1 - rate); None: keep all

    def forward(self, x: Tensor) -> Tensor:
        """Scale or zero the branch of each sequence: `x: [S, N, D]` -> `[S, N, D]`."""
        return x if self.keep is None else x * self.keep.to(x.dtype)


class RotaryBlock(Block):
    """timm's block with rotary position embedding in its attention."""

    def __init__(self, width: int, heads: int, registers: int, **options: Any) -> None:
        super().__init__(width, heads, **options)
        self.attn = AttentionRope(
            width,
            heads,
            qkv_bias=options["qkv_bias"],
            qk_norm=options["qk_norm"],
            norm_layer=options["norm_layer"],
            num_prefix_tokens=registers,
        )

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:  # type: ignore[override]
        """Apply the block to sequences of R registers and N patches.

        Args:
            x: `[S, R + N, D]`.
            rope: `[S, 1, N, 2 * D / heads]` or `[N, 2 * D / heads]` (`rotary_table`).

        Returns:
            `[S, R + N, D]`.
        """
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), rope=rope)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


BLOCKS = (Block, RotaryBlock, ParallelScalingBlock)  # ZeRO-3 gathers each as a whole


def make_blocks(size: Size) -> nn.ModuleList:
    """Build the blocks of one network of shape `size`."""
    options: dict[str, Any] = {
        # The half prevents int(width * ratio) from rounding down to mlp_hidden - 1.
        "mlp_ratio": (size.mlp_hidden + 0.5) / size.width,
        "qkv_bias": size.qkv_bias,
        "qk_norm": size.qk_norm,
        "init_values": size.layer_scale or None,
        "norm_layer": LayerNorm,
    }
    if size.swiglu:
        options |= {"mlp_layer": SwiGLU, "act_layer": nn.SiLU if size.gate == "silu" else nn.GELU}  # timm's blocks pass GELU
    kind = ParallelScalingBlock if size.parallel else partial(RotaryBlock, registers=size.registers) if size.rope else Block
    blocks = nn.ModuleList(kind(size.width, size.heads, **options) for _ in range(size.depth))
    for index, block in enumerate(blocks):
        rate = size.drop_path * index / max(1, size.depth - 1)
        for name in ("drop_path", "drop_path1", "drop_path2") if rate else ():
            if hasattr(block, name):
                setattr(block, name, DropPath(rate))
    return blocks


def flatten_blocks(model: nn.Module, forget_weights: bool) -> None:
    """Make the parameters of every block of a model two tensors (`flat.flatten`), in place."""
    for module in list(model.modules()):
        if isinstance(module, BLOCKS):
            flat.flatten(module, forget_weights)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, checkpointing: str, *more: Tensor) -> Tensor:
    """Apply blocks in order.

    Args:
        blocks: The blocks.
        x: `[S, N, D]`.
        checkpointing: none; full: save only a block's input and recompute the block in the backward pass; selective: also
            save the results of its matrix products and recompute only the operations between them.
        *more: Further arguments of every block.

    Returns:
        `[S, N, D]`.
    """
    for block in blocks:
        if checkpointing == "none" or not torch.is_grad_enabled():
            x = block(x, *more)
        elif checkpointing == "full":
            x = checkpoint(block, x, *more, use_reentrant=False)
        else:
            x = checkpoint(block, x, *more, use_reentrant=False, context_fn=_selective)
    return x


def _selective() -> Any:
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _SAVED_OPS else CheckpointPolicy.PREFER_RECOMPUTE


def draw_drops(blocks: nn.ModuleList, patches: Tensor | None) -> None:
    """Select the residual branches that each sequence skips, as a function of its patch indices and the block.

    Masks are a function of (seed, step, global sample number), and so are the skipped branches, for any world size,
    micro-batch and restart. Two samples with the same patches skip the same branches.

    Args:
        blocks: Blocks of the context encoder.
        patches: int64 `[S, K]`, the patch indices of every sequence; None: skip nothing.
    """
    drops = [module for module in blocks.modules() if isinstance(module, DropPath)]
    if patches is None:
        for drop in drops:
            drop.keep = None
        return
    odd = torch.arange(1, patches.shape[1] + 1, device=patches.device) * 2 + 1
    chance = counter.uniform(0, counter.STREAM_DROP, ((patches + 1) * odd * odd).sum(dim=1), len(drops))  # [S, drops]
    for index, drop in enumerate(drops):
        kept = (chance[:, index] >= drop.rate).to(torch.float32) / (1.0 - drop.rate)
        drop.keep = kept[:, None, None]


def rotary_table(head_width: int, grid: int) -> Tensor:
    """Return the sines and cosines of rotary position embedding for a grid.

    The first half of a head's channels encodes the column of the patch, the second its row. Frequencies are
    100^(-i / (head_width / 4)), as in DINOv3 (arXiv 2508.10104). Coordinates range from -1 to 1, so every grid of an image
    covers the same range.

    Args:
        head_width: Channels of one head, a multiple of 4.
        grid: G, patches along a side.

    Returns:
        float32 `[G*G, 2 * head_width]`: sines, then cosines, of interleaved pairs (timm's order).
    """
    # numpy, because DeepSpeed's zero.Init casts new float tensors of torch to the model's type
    centre = (np.arange(grid, dtype=np.float64) + 0.5) / grid * 2 - 1
    omega = 2 * np.pi * 100.0 ** (-np.arange(head_width // 4, dtype=np.float64) / (head_width / 4))
    line = centre[:, None] * omega  # [G, head_width / 4]
    columns = np.broadcast_to(line[None, :, :], (grid, grid, head_width // 4))
    rows = np.broadcast_to(line[:, None, :], (grid, grid, head_width // 4))
    angles = np.concatenate([columns, rows], axis=2).reshape(grid * grid, head_width // 2).repeat(2, axis=1)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32))
