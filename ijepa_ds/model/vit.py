"""The networks: a pre-norm ViT encoder and the narrow predictor, from timm's blocks with fused attention.

Shapes: B images, N = G*G patches, D encoder width, P predictor width, C contexts and M target blocks an image,
Kc / Kt patches kept in a context / a target block. Parameter names are timm's, and the published checkpoints'.

Precision: parameters may be bfloat16 or float32. The residual stream, LayerNorm's arithmetic and softmax (inside the fused
kernel) are float32 either way; only the inputs of matrix products take the parameters' type.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.config.sizes import Size
from ijepa_ds.masks.sampler import take
from ijepa_ds.model.blocks import LayerNorm, draw_drops, make_blocks, rotary_table, run_blocks


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


class Encoder(nn.Module):
    """ViT without class token; with `context`, only the indexed patches go through the blocks."""

    def __init__(
        self, size: Size, patch_size: int, grid: int, checkpointing: str = "none", position_grid: int | None = None
    ) -> None:
        """A network without values.

        Args:
            size: its shape.
            patch_size: pixels along a side of a patch.
            grid: patches along a side of an image.
            checkpointing: which activations to recompute in the backward pass (`vit_blocks.run_blocks`).
            position_grid: the grid that positions are learnt on, if not `grid` (`sincos_position_embedding`).
        """
        super().__init__()
        self.size, self.patch_size, self.grid, self.checkpointing = size, patch_size, grid, checkpointing
        self.position_grid = position_grid or grid
        self.patch_embed = PatchEmbed(patch_size, size.width)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_position_embedding(size.width, grid, self.position_grid))
        if size.rope:
            self.register_buffer("rope", rotary_table(size.width // size.heads, grid), persistent=False)
        if size.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, size.registers, size.width))
        self.blocks = make_blocks(size)
        self.norm = LayerNorm(size.width, result=torch.float32)

    def set_grid(self, grid: int) -> None:
        """Take images of another number of patches from now on: positions are evaluated between the learnt ones."""
        if grid != self.grid:
            device = self.pos_embed.device
            self.pos_embed = sincos_position_embedding(self.size.width, grid, self.position_grid).to(device)
            if self.size.rope:
                self.rope = rotary_table(self.size.width // self.size.heads, grid).to(device)
            self.grid = grid

    def forward(self, images: Tensor, context: Tensor | None = None) -> Tensor:
        """Encode whole images, or contexts of them.

        Args:
            images: `[B, 3, H, W]`, normalised.
            context: int64 `[B, C, Kc]` patch indices, or None for all patches.

        Returns:
            float32 `[B, C, Kc, D]`, or `[B, N, D]` without `context`.
        """
        x = self.patch_embed(images)  # [B, N, D]
        x = x.float() if self.size.rope else x + self.pos_embed  # the residual stream is float32
        if context is None:
            return self._encode(x, None)
        b, c, k = context.shape
        x = take(x, context.flatten(1)).reshape(b * c, k, -1)  # [B*C, Kc, D]
        return self._encode(x, context.flatten(0, 1)).reshape(b, c, k, -1)

    def _encode(self, x: Tensor, patches: Tensor | None) -> Tensor:
        """Blocks and norm over `x: [S, K, D]`; `patches`: int64 `[S, K]`, or None for all patches in order."""
        registers, positions = self.size.registers, []
        if self.size.rope:
            table: Tensor = self.rope  # type: ignore[assignment]
            positions = [table if patches is None else table[patches][:, None]]  # [N, 2H] or [S, 1, K, 2H]
        if self.size.drop_path:
            draw_drops(self.blocks, patches if self.training and torch.is_grad_enabled() else None)
        if registers:
            x = torch.cat([self.reg_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(run_blocks(self.blocks, x, self.checkpointing, *positions)[:, registers:])


class Predictor(nn.Module):
    """From a context's representation and the positions of a target block to the block's representation."""

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: int,
        checkpointing: str = "none",
        position_grid: int | None = None,
    ) -> None:
        """A network without values; `position_grid` as in `Encoder`."""
        super().__init__()
        self.checkpointing = checkpointing
        self.grid, self.position_grid = grid, position_grid or grid
        self.predictor_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.predictor_pos_embed: Tensor
        self.register_buffer("predictor_pos_embed", sincos_position_embedding(width, grid, position_grid))
        self.predictor_blocks = make_blocks(Size(width, depth, heads, 4 * width))  # plain, whatever the encoder is
        self.predictor_norm = LayerNorm(width)
        self.predictor_proj = nn.Linear(width, encoder_width)

    def set_grid(self, grid: int) -> None:
        """As `Encoder.set_grid`."""
        if grid != self.grid:
            table = sincos_position_embedding(self.predictor_embed.out_features, grid, self.position_grid)
            self.predictor_pos_embed = table.to(self.predictor_pos_embed.device)
            self.grid = grid

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
        position = self.predictor_pos_embed.expand(b, -1, -1)
        x = self.predictor_embed(z.to(self.predictor_embed.weight.dtype))
        x = x + take(position, context.flatten(1)).reshape(b, c, kc, -1)
        query = self.mask_token + take(position, targets.flatten(1))
        query = query.reshape(b, 1, m, kt, -1).expand(-1, c, -1, -1, -1)
        x = torch.cat([x[:, :, None].expand(-1, -1, m, -1, -1), query], dim=3)  # [B, C, M, Kc + Kt, P]
        x = run_blocks(self.predictor_blocks, x.flatten(0, 2), self.checkpointing)
        x = self.predictor_proj(self.predictor_norm(x[:, kc:]))
        return x.reshape(b, c, m, kt, -1)


def initial_value(name: str, shape: torch.Size, seed: int, layer_scale: float = 0.0) -> Tensor:
    """The float32 start value of one parameter, a function of its name, shape, `seed` and the model's options alone.

    A rank can therefore fill its own slice of any parameter: the start is the same for every world size and ZeRO stage.

    | tensor | distribution |
    |---|---|
    | weights of Linear and of the patch convolution, mask token, registers | normal, std 0.02, cut at +-2 |
    | biases | 0 |
    | LayerNorm weights | 1 |
    | LayerScale | `layer_scale` |

    This is what the published runs trained from; the 1/sqrt(2*layer) rescaling in the released code is undone there
    before training. The cut is an absolute +-2 (100 standard deviations), so the normal is used as it is.
    """
    leaf = name.rsplit(".", 2)
    if leaf[-1] in ("bias", "mlp_bias"):
        return torch.zeros(shape, dtype=torch.float32, device="cpu")
    if leaf[-1] == "weight" and len(shape) == 1:
        return torch.ones(shape, dtype=torch.float32, device="cpu")
    if leaf[-1] == "gamma":
        return torch.full(shape, layer_scale, dtype=torch.float32, device="cpu")
    key = math.prod(shape)
    for char in name.encode():
        key = (key * 1_000_003 + char) % (1 << 61)
    generator = torch.Generator(device="cpu").manual_seed((key ^ (seed * 0x9E3779B97F4A7C15)) % (1 << 63))
    return torch.empty(shape, dtype=torch.float32, device="cpu").normal_(0.0, 0.02, generator=generator)


@torch.no_grad()
def initialise(module: nn.Module, seed: int, prefix: str = "", layer_scale: float = 0.0) -> None:
    """Fill every parameter of an unsharded `module` with `initial_value` of `prefix` + its name."""
    for name, parameter in module.named_parameters():
        parameter.copy_(initial_value(prefix + name, parameter.shape, seed, layer_scale))
