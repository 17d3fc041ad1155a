"""The networks: a plain pre-norm ViT encoder and the narrow predictor, from timm's blocks with fused attention.

Shapes: B images, N = G*G patches, D encoder width, P predictor width, C contexts and M target blocks an image,
Kc / Kt patches kept in a context / a target block. Parameter names are timm's, and the published checkpoints'.

Precision: parameters may be bfloat16 or float32. The residual stream, LayerNorm's arithmetic and softmax (inside the fused
kernel) are float32 either way; only the inputs of matrix products take the parameters' type.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ijepa_ds.config_sizes import Size
from ijepa_ds.masks import take


class LayerNorm(nn.LayerNorm):
    """LayerNorm computed in float32, whatever its weights' type; the result has the weights' type, or `result`."""

    def __init__(self, width: int, eps: float = 1e-6, result: torch.dtype | None = None, **factory: object) -> None:
        super().__init__(width, eps=eps, **factory)  # type: ignore[arg-type]
        self.result = result

    def forward(self, x: Tensor) -> Tensor:
        """`x: [..., D]` -> `[..., D]`."""
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(self.result or self.weight.dtype)


class PatchEmbed(nn.Module):
    """Non-overlapping patches through one convolution."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """`images: [B, 3, H, W]` -> `[B, N, D]`, patches in row-major order."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


def sincos_position_embedding(width: int, grid: int, learnt_grid: int | None = None) -> Tensor:
    """Fixed 2-D sine-cosine embedding, float32 `[1, G*G, width]`.

    The first half of the channels encodes the column of the patch, the second its row (as in the published weights).

    Args:
        width: channels, a multiple of 4.
        grid: G, patches along a side.
        learnt_grid: patches along a side where the weights were trained, if that was another grid: the G patches then
            share the extent of those, at the fractional positions of their centres, and the sines are evaluated there.
    """
    # numpy, because DeepSpeed's zero.Init casts every float tensor that torch makes under it to the model's type
    omega = 10000.0 ** (-np.arange(width // 4, dtype=np.float64) / (width / 4))
    positions = np.arange(grid, dtype=np.float64)
    if learnt_grid is not None and learnt_grid != grid:
        positions = (positions + 0.5) * learnt_grid / grid - 0.5
    angles = positions[:, None] * omega  # [G, width/4]
    line = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # [G, width/2]
    columns = np.broadcast_to(line[None, :, :], (grid, grid, width // 2))
    rows = np.broadcast_to(line[:, None, :], (grid, grid, width // 2))
    table = np.concatenate([columns, rows], axis=2).reshape(1, grid * grid, width)
    return torch.from_numpy(table.astype(np.float32))


def _blocks(width: int, depth: int, heads: int, mlp_hidden: int) -> nn.ModuleList:
    # The half keeps int(width * ratio) from falling one short of mlp_hidden.
    ratio = (mlp_hidden + 0.5) / width
    return nn.ModuleList(
        Block(width, heads, mlp_ratio=ratio, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)
    )


def _run(blocks: nn.ModuleList, x: Tensor, checkpointing: bool) -> Tensor:
    """Through all blocks; with `checkpointing`, activations inside a block are recomputed in the backward pass."""
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = block(x)
    return x


class Encoder(nn.Module):
    """ViT without class token; with `context`, only the indexed patches go through the blocks."""

    def __init__(
        self, size: Size, patch_size: int, grid: int, checkpointing: bool = False, position_grid: int | None = None
    ) -> None:
        """A network without values.

        Args:
            size: its shape.
            patch_size: pixels along a side of a patch.
            grid: patches along a side of an image.
            checkpointing: recompute activations in the backward pass.
            position_grid: the grid that positions are learnt on, if not `grid` (`sincos_position_embedding`).
        """
        super().__init__()
        self.size, self.patch_size, self.grid, self.checkpointing = size, patch_size, grid, checkpointing
        self.position_grid = position_grid or grid
        self.patch_embed = PatchEmbed(patch_size, size.width)
        self.register_buffer("pos_embed", sincos_position_embedding(size.width, grid, self.position_grid))
        self.blocks = _blocks(size.width, size.depth, size.heads, size.mlp_hidden)
        self.norm = LayerNorm(size.width, result=torch.float32)

    def set_grid(self, grid: int) -> None:
        """Take images of another number of patches from now on: positions are evaluated between the learnt ones."""
        if grid != self.grid:
            device = self.patch_embed.proj.weight.device
            self.pos_embed = sincos_position_embedding(self.size.width, grid, self.position_grid).to(device)
            self.grid = grid

    def forward(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        """Encode whole images, or contexts of them.

        Args:
            images: `[B, 3, H, W]`, normalised.
            context: int64 `[B, C, Kc]` patch indices, or None for all patches.

        Returns:
            float32 `[B, C, Kc, D]`, or `[B, N, D]` without `context`.
        """
        x = self.patch_embed(images) + self.pos_embed  # [B, N, D], float32 through the position embedding
        if context is None:
            return self.norm(_run(self.blocks, x, self.checkpointing))
        b, c, k = context.shape
        x = take(x, context.flatten(1)).reshape(b * c, k, -1)  # [B*C, Kc, D]
        x = self.norm(_run(self.blocks, x, self.checkpointing))
        return x.reshape(b, c, k, -1)


class Predictor(nn.Module):
    """From a context's representation and the positions of a target block to the block's representation."""

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: int,
        checkpointing: bool = False,
        position_grid: int | None = None,
    ) -> None:
        """A network without values; `position_grid` as in `Encoder`."""
        super().__init__()
        self.checkpointing = checkpointing
        self.predictor_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("predictor_pos_embed", sincos_position_embedding(width, grid, position_grid))
        self.predictor_blocks = _blocks(width, depth, heads, 4 * width)
        self.predictor_norm = LayerNorm(width)
        self.predictor_proj = nn.Linear(width, encoder_width)

    def forward(self, z: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Predict every target block from every context of the same image.

        Args:
            z: `[B, C, Kc, D]` encoded contexts.
            context: int64 `[B, C, Kc]`.
            targets: int64 `[B, M, Kt]`.

        Returns:
            `[B, C, M, Kt, D]`.
        """
        (b, c, kc), (m, kt) = context.shape, targets.shape[1:]
        position: Tensor = self.predictor_pos_embed.expand(b, -1, -1)  # type: ignore[operator]
        x = self.predictor_embed(z.to(self.predictor_embed.weight.dtype))
        x = x + take(position, context.flatten(1)).reshape(b, c, kc, -1)
        query = self.mask_token + take(position, targets.flatten(1))
        query = query.reshape(b, 1, m, kt, -1).expand(-1, c, -1, -1, -1)
        x = torch.cat([x[:, :, None].expand(-1, -1, m, -1, -1), query], dim=3)  # [B, C, M, Kc + Kt, P]
        x = _run(self.predictor_blocks, x.flatten(0, 2), self.checkpointing)
        x = self.predictor_proj(self.predictor_norm(x[:, kc:]))
        return x.reshape(b, c, m, kt, -1)


def initial_value(name: str, shape: torch.Size, seed: int) -> Tensor:
    """The float32 start value of one parameter, a function of its name, shape and `seed` alone.

    A rank can therefore fill its own slice of any parameter: the start is the same for every world size and ZeRO stage.

    | tensor | distribution |
    |---|---|
    | weights of Linear and of the patch convolution, mask token | normal, std 0.02, cut at +-2 |
    | biases | 0 |
    | LayerNorm weights | 1 |

    This is what the published runs trained from; the 1/sqrt(2*layer) rescaling in the released code is undone there
    before training. The cut is an absolute +-2 (100 standard deviations), so the normal is used as it is.
    """
    leaf = name.rsplit(".", 2)
    if leaf[-1] == "bias":
        return torch.zeros(shape, dtype=torch.float32, device="cpu")
    if leaf[-1] == "weight" and len(shape) == 1:
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    key = math.prod(shape)
    for char in name.encode():
        key = (key * 1_000_003 + char) % (1 << 61)
    generator = torch.Generator(device="cpu").manual_seed((key ^ (seed * 0x9E3779B97F4A7C15)) % (1 << 63))
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, 0.02, generator=generator)


@torch.no_grad()
def initialise(module: nn.Module, seed: int, prefix: str = "") -> None:
    """Fill every parameter of an unsharded `module` with `initial_value` of `prefix` + its name."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(prefix + name, parameter.shape, seed))
