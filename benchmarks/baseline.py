"""A plain implementation of the method with basic PyTorch modules and no tuning.

Attention materialises its N x N weights, targets are encoded whole, every (context, target block) pair is a separate
sequence in the predictor, and optimizer and EMA loop over the parameters. Parameter names are the published ones; weights
and position tables come from a state dict. `tests/benchmarks/test_baseline.py` compares it with recorded runs.

Letters: B images, N patches, D width, C contexts, M target blocks. Batches are mask-major, as in the published code: mask c
of every image, then mask c + 1; of predictions, (m * C + c) * B + b.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of encoder and predictor."""

    grid: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_hidden: int
    predictor_width: int
    predictor_depth: int


class Attention(nn.Module):
    """Multi-head self-attention by two matrix products and a softmax between them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[S, N, D]` -> the same."""
        s, n, d = x.shape
        q, k, v = self.qkv(x).reshape(s, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)  # [S, heads, N, N]
        return self.proj((weights @ v).transpose(1, 2).reshape(s, n, d))


class Mlp(nn.Module):
    """Two layers with an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[S, N, D]` -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """`[S, N, D]` -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A strided convolution."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, N, D]`."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """ViT without class token; with masks, only their patches go through the blocks."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(shape.patch_size, shape.width)
        self.register_buffer("pos_embed", torch.zeros(1, shape.grid**2, shape.width))
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads, shape.mlp_hidden) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width, eps=1e-6)

    def forward(self, images: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """`masks`: C of `[B, K]` -> `[C * B, K, D]`; without: `[B, N, D]`."""
        x = self.patch_embed(images) + self.pos_embed
        if masks is not None:
            x = select(x, masks)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Predictor(nn.Module):
    """Predicts every target block from every context, one sequence per pair."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.predictor_width
        self.predictor_embed = nn.Linear(shape.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("predictor_pos_embed", torch.zeros(1, shape.grid**2, width))
        self.predictor_blocks = nn.ModuleList(Block(width, shape.heads, 4 * width) for _ in range(shape.predictor_depth))
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, shape.width)

    def forward(self, z: Tensor, contexts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """`z: [C * B, Kc, D]` -> `[M * C * B, Kt, D]`."""
        images = len(z) // len(contexts)
        x = self.predictor_embed(z)
        x = x + select(self.predictor_pos_embed.repeat(images, 1, 1), contexts)
        positions = select(self.predictor_pos_embed.repeat(images, 1, 1), targets)  # [M * B, Kt, P]
        queries = self.mask_token + repeated(positions, images, len(contexts))
        seen = x.shape[1]
        x = torch.cat([x.repeat(len(targets), 1, 1), queries], dim=1)
        for block in self.predictor_blocks:
            x = block(x)
        return self.predictor_proj(self.predictor_norm(x)[:, seen:])


class Method(nn.Module):
    """Encoder, predictor, and the target encoder that follows the encoder."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.encoder, self.predictor, self.target_encoder = Encoder(shape), Predictor(shape), Encoder(shape)
        self.target_encoder.requires_grad_(False)

    def targets(self, images: Tensor, contexts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """`[M * C * B, Kt, D]`: the whole image's representation, layer-normed, at the target blocks."""
        with torch.no_grad():
            h = self.target_encoder(images)
            h = F.layer_norm(h, h.shape[-1:])
            return repeated(select(h, targets), len(images), len(contexts))

    def forward(self, images: Tensor, contexts: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """The loss of a batch."""
        target = self.targets(images, contexts, targets)
        return F.smooth_l1_loss(self.predictor(self.encoder(images, contexts), contexts, targets), target)


def select(x: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The patches of every mask: `x: [B, N, D]`, n masks `[B, K]` -> `[n * B, K, D]`."""
    return torch.cat([torch.gather(x, 1, mask.unsqueeze(-1).repeat(1, 1, x.shape[-1])) for mask in masks], dim=0)


def repeated(x: Tensor, images: int, times: int) -> Tensor:
    """`times` copies of every group of `images` rows, after each other."""
    return torch.cat([group for group in x.split(images) for _ in range(times)], dim=0)


class Training:
    """Optimizer and EMA of a method, with loops over parameters."""

    def __init__(self, method: Method) -> None:
        self.method = method
        trained = [(n, p) for part in (method.encoder, method.predictor) for n, p in part.named_parameters()]
        plain = {n for n, p in trained if n.endswith(".bias") or p.ndim == 1}
        groups = [
            {"params": [p for n, p in trained if n not in plain], "decay": True},
            {"params": [p for n, p in trained if n in plain], "decay": False},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, foreach=False, fused=False)

    def optimizer_step(self, lr: float, weight_decay: float) -> None:
        """AdamW step; clears gradients."""
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, weight_decay if group["decay"] else 0.0
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def average(self, momentum: float) -> None:
        """Target <- momentum * target + (1 - momentum) * encoder."""
        pairs = zip(self.method.encoder.parameters(), self.method.target_encoder.parameters(), strict=True)
        for source, target in pairs:
            target.data.mul_(momentum).add_((1.0 - momentum) * source.detach().data)

    def step(
        self, images: Tensor, masks: tuple[Sequence[Tensor], Sequence[Tensor]], lr: float, weight_decay: float, momentum: float
    ) -> float:
        """One training step; `masks` are contexts and targets. Returns the loss."""
        loss = self.method(images, *masks)
        loss.backward()
        self.optimizer_step(lr, weight_decay)
        self.average(momentum)
        return float(loss.detach())
