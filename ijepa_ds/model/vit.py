"""The networks: a pre-norm ViT encoder and a narrow predictor, from timm's blocks with fused attention.

Shapes: B images, N = G*G patches, D encoder width, P predictor width, T values of a target, C contexts and M target
blocks per image, Kc / Kt patches in a context / a target block. Parameter names are those of timm and of the published
checkpoints.

Precision: parameters are bfloat16 or float32. LayerNorm and softmax (inside the fused kernel) are always computed in
float32. So is the residual stream unless `residual` is another type. Inputs of matrix products have the parameters' type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.config.sizes import Size
from ijepa_ds.masks.sampler import take
from ijepa_ds.model.blocks import LayerNorm, draw_drops, make_blocks, rotary_table, run_blocks


class PatchEmbed(nn.Module):
    """Embedding of non-overlapping patches by one convolution."""

    def __init__(self, patch_size: int, width: int, channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed `images: [B, C, H, W]` -> `[B, N, D]`, patches in raster order."""
        return self.proj(images.to(self.proj.weight.dtype)).flatten(2).transpose(1, 2)


def sincos_position_embedding(width: int, grid: int, learnt_grid: int | None = None) -> Tensor:
    """Return the fixed 2-D sine-cosine position embedding, float32 `[1, G*G, width]`.

    The first half of the channels encodes the column of the patch, the second its row (published weights).

    Args:
        width: Channels, a multiple of 4.
        grid: G, patches along a side.
        learnt_grid: Grid on which the weights were trained, if different. The G patches then cover the same extent, and
            the sines are evaluated at the fractional positions of their centres.
    """
    # numpy, because DeepSpeed's zero.Init casts new float tensors of torch to the model's type
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
    """A ViT without class token that encodes all patches, or only those of the contexts."""

    def __init__(
        self,
        size: Size,
        patch_size: int,
        grid: int,
        checkpointing: str = "none",
        position_grid: int | None = None,
        residual: torch.dtype = torch.float32,
    ) -> None:
        """Build an uninitialised network.

        Args:
            size: Shape of the network.
            patch_size: Pixels along a side of a patch.
            grid: Patches along a side of an image.
            checkpointing: Activations to recompute in the backward pass (`blocks.run_blocks`).
            position_grid: Grid on which the positions are trained, if not `grid` (`sincos_position_embedding`).
            residual: Type of the residual stream.
        """
        super().__init__()
        self.size, self.patch_size, self.grid, self.checkpointing = size, patch_size, grid, checkpointing
        self.position_grid, self.residual = position_grid or grid, residual
        self.patch_embed = PatchEmbed(patch_size, size.width, size.channels)
        self.pos_embed: Tensor
        self.register_buffer("pos_embed", sincos_position_embedding(size.width, grid, self.position_grid))
        if size.rope:
            self.register_buffer("rope", rotary_table(size.width // size.heads, grid), persistent=False)
        if size.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, size.registers, size.width))
        self.blocks = make_blocks(size)
        self.norm = LayerNorm(size.width, result=torch.float32)

    def set_grid(self, grid: int) -> None:
        """Set the number of patches along a side of later images; positions are interpolated."""
        if grid != self.grid:
            device = self.pos_embed.device
            self.pos_embed = sincos_position_embedding(self.size.width, grid, self.position_grid).to(device)
            if self.size.rope:
                self.rope = rotary_table(self.size.width // self.size.heads, grid).to(device)
            self.grid = grid

    def forward(self, images: Tensor, context: Tensor | None = None, layers: Sequence[int] = ()) -> Tensor:
        """Encode whole images, or only their contexts.

        Args:
            images: `[B, 3, H, W]`, normalised.
            context: int64 `[B, C, Kc]`, patch indices; None: all patches.
            layers: K blocks, ascending from 1: return their outputs for all patches, without the final norm. Blocks after
                the last one do not run. Not with `context`.

        Returns:
            float32 `[B, C, Kc, D]`; without `context` `[B, N, D]`; with `layers` `[B, N, K, D]` of the residual stream's type.
        """
        x = self._embed(images)  # [B, N, D]
        if layers:
            return self._hidden(x, layers)
        if context is None:
            return self._encode(x, None)
        b, c, k = context.shape
        x = take(x, context.flatten(1)).reshape(b * c, k, -1)  # [B*C, Kc, D]
        return self._encode(x, context.flatten(0, 1)).reshape(b, c, k, -1)

    def embed(self, images: Tensor) -> Tensor:
        """What the first block gets of whole images `[B, 3, H, W]`: registers and patches `[B, R + N, D]`."""
        return self._with_registers(self._embed(images))

    def positions(self, patches: Tensor | None = None) -> list[Tensor]:
        """Further arguments of every block; `patches`: int64 `[S, K]`, or None for all patches in order."""
        if not self.size.rope:
            return []
        table: Tensor = self.rope  # type: ignore[assignment]
        return [table if patches is None else table[patches][:, None]]  # [N, 2H] or [S, 1, K, 2H]

    def _embed(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        return (x if self.size.rope else x + self.pos_embed).to(self.residual)

    def _with_registers(self, x: Tensor) -> Tensor:
        if not self.size.registers:
            return x
        return torch.cat([self.reg_token.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)

    def _hidden(self, x: Tensor, layers: Sequence[int]) -> Tensor:
        """Outputs of the blocks `layers` for embedded images `x: [B, N, D]`, as in `forward`; no branch is dropped."""
        if self.size.drop_path:
            draw_drops(self.blocks, None)
        x, more, found = self._with_registers(x), self.positions(), []
        for number, block in enumerate(islice(self.blocks, layers[-1]), start=1):
            x = run_blocks((block,), x, self.checkpointing, *more)
            if number in layers:
                found.append(x[:, self.size.registers :])
        return torch.stack(found, dim=2)

    def _encode(self, x: Tensor, patches: Tensor | None) -> Tensor:
        """Apply blocks and norm to `x: [S, K, D]`; `patches`: int64 `[S, K]`, or None for all patches in order."""
        if self.size.drop_path:
            draw_drops(self.blocks, patches if self.training and torch.is_grad_enabled() else None)
        x = run_blocks(self.blocks, self._with_registers(x), self.checkpointing, *self.positions(patches))
        return self.norm(x[:, self.size.registers :])


class Predictor(nn.Module):
    """A narrow ViT that predicts the representation of a target block from a context and the block's positions."""

    def __init__(
        self,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: int,
        checkpointing: str = "none",
        position_grid: int | None = None,
        outputs: int | None = None,
        residual: torch.dtype = torch.float32,
        projection: int = 0,
    ) -> None:
        """Build an uninitialised network.

        Args:
            encoder_width: D.
            width: P.
            depth: Number of blocks.
            heads: Attention heads.
            grid: Patches along a side of an image.
            checkpointing: As in `Encoder`.
            position_grid: As in `Encoder`.
            outputs: T, values of a prediction; None: D.
            residual: As in `Encoder`.
            projection: Width of `projector`, which `objective.spread_terms` uses; 0: none.
        """
        super().__init__()
        self.checkpointing, self.residual = checkpointing, residual
        self.grid, self.position_grid = grid, position_grid or grid
        self.predictor_embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.predictor_pos_embed: Tensor
        self.register_buffer("predictor_pos_embed", sincos_position_embedding(width, grid, position_grid))
        self.predictor_blocks = make_blocks(Size(width, depth, heads, 4 * width))  # plain blocks for every kind of encoder
        self.predictor_norm = LayerNorm(width)
        self.predictor_proj = nn.Linear(width, outputs or encoder_width)
        if projection:
            # a last bias would have no gradient: the terms are of centred projections
            last = nn.Linear(projection, projection, bias=False)
            self.projector = nn.Sequential(nn.Linear(encoder_width, projection), nn.GELU(), last)

    def set_grid(self, grid: int) -> None:
        """Set the number of patches along a side of later images, as `Encoder.set_grid`."""
        if grid != self.grid:
            table = sincos_position_embedding(self.predictor_embed.out_features, grid, self.position_grid)
            self.predictor_pos_embed = table.to(self.predictor_pos_embed.device)
            self.grid = grid

    def forward(self, z: Tensor, context: Tensor, targets: Tensor, with_context: bool = False) -> Tensor:
        """Predict every target block from every context of the same image.

        Args:
            z: `[B, C, Kc, D]`, encoded contexts.
            context: int64 `[B, C, Kc]`.
            targets: int64 `[B, M, Kt]`.
            with_context: Also predict the context's own patches; they come first.

        Returns:
            `[B, C, M, Kt, T]`, or `[B, C, M, Kc + Kt, T]`. T is D unless the network was built with other `outputs`.
        """
        (b, c, kc), (m, kt) = context.shape, targets.shape[1:]
        position = self.predictor_pos_embed.expand(b, -1, -1)
        x = self.predictor_embed(z.to(self.predictor_embed.weight.dtype))
        x = x + take(position, context.flatten(1)).reshape(b, c, kc, -1)
        query = self.mask_token + take(position, targets.flatten(1))
        query = query.reshape(b, 1, m, kt, -1).expand(-1, c, -1, -1, -1)
        x = torch.cat([x[:, :, None].expand(-1, -1, m, -1, -1), query], dim=3)  # [B, C, M, Kc + Kt, P]
        x = run_blocks(self.predictor_blocks, x.flatten(0, 2).to(self.residual), self.checkpointing)
        x = self.predictor_proj(self.predictor_norm(x if with_context else x[:, kc:]))
        return x.reshape(b, c, m, -1, x.shape[-1])


def initial_value(name: str, shape: torch.Size, seed: int, layer_scale: float = 0.0) -> Tensor:
    """Return the float32 initial value of one parameter: a function of its name, shape, the seed and `layer_scale`.

    Any rank can compute its own slice of a parameter, so the values are the same for every world size and ZeRO stage.

    | tensor | distribution |
    |---|---|
    | weights of Linear and of the patch convolution, mask token, registers | normal, std 0.02, cut at +-2 |
    | biases | 0 |
    | LayerNorm weights | 1 |
    | LayerScale | `layer_scale` |

    This matches the published runs: their code applies a 1/sqrt(2*layer) rescaling and undoes it before training. Its
    cut at an absolute +-2 is 100 standard deviations, so we draw from the untruncated normal distribution.
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
