"""Rotary positions against their formula, attention against an explicit rotation, rates and scales of dropped branches."""

from __future__ import annotations

import cmath
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ijepa_ds import counter
from ijepa_ds.config.sizes import Size
from ijepa_ds.model.blocks import DropPath, draw_drops, make_blocks, rotary_table
from ijepa_ds.model.vit import Encoder, initialise

HEADS, WIDTH, GRID, REGISTERS = 2, 16, 5, 3
SIZE = Size(WIDTH, 2, HEADS, 32, rope=True, registers=REGISTERS)


def angle(channel_pair: int, patch: int, head_width: int, grid: int) -> float:
    """Angle of a pair of channels at a patch: 2 pi * coordinate / 100^(4 i / head width) (DINOv3, arXiv 2508.10104).

    The first half of the pairs takes the patch's column, the second its row. Coordinates are the patches' centres in an
    image from -1 to 1.
    """
    row, column = divmod(patch, grid)
    axis, i = divmod(channel_pair, head_width // 4)
    coordinate = (2 * (row if axis else column) + 1) / grid - 1
    return 2 * math.pi * coordinate / 100 ** (4 * i / head_width)


@pytest.mark.parametrize(("head_width", "grid"), [(8, 5), (16, 4), (64, 14)])
def test_table_is_the_formula(head_width: int, grid: int) -> None:
    table = rotary_table(head_width, grid)
    assert table.shape == (grid * grid, 2 * head_width) and table.dtype == torch.float32
    expected = [[angle(c // 2, patch, head_width, grid) for c in range(head_width)] for patch in range(grid * grid)]
    wanted = torch.tensor(expected, dtype=torch.float64)
    wanted = torch.cat([wanted.sin(), wanted.cos()], dim=1)
    # float32 rounds by 6e-8; no 2 pi, another base, swapped axes or corners for centres: above 0.1
    torch.testing.assert_close(table.double(), wanted, rtol=0, atol=1e-7)


def rotated(x: Tensor, patches: list[int]) -> Tensor:
    """Turn each pair of channels (2i, 2i + 1) of the patches of x [heads, R + K, d]; registers, the first R, stay."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())  # [heads, R + K, d / 2]
    turn = torch.ones(pairs.shape[1:], dtype=pairs.dtype)
    for place, patch in enumerate(patches):
        for pair in range(pairs.shape[2]):
            turn[REGISTERS + place, pair] = cmath.exp(1j * angle(pair, patch, 2 * pairs.shape[2], GRID))
    return torch.view_as_real(pairs * turn).flatten(-2)


def encoded(encoder: Encoder, image: Tensor, patches: list[int]) -> Tensor:
    """The encoder's output [K, D] for some patches of one image [3, H, W], with attention written out."""
    x = encoder.patch_embed(image[None])[0, patches]  # no absolute position
    x = torch.cat([encoder.reg_token[0], x])
    for block in encoder.blocks:
        qkv = block.attn.qkv(block.norm1(x)).reshape(len(x), 3, HEADS, -1).permute(1, 2, 0, 3)  # [3, heads, R + K, d]
        q, k, v = rotated(qkv[0], patches), rotated(qkv[1], patches), qkv[2]
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        x = x + block.attn.proj((weights @ v).permute(1, 0, 2).flatten(1))
        x = x + block.mlp(block.norm2(x))
    return encoder.norm(x)[REGISTERS:]


def made(size: Size, grid: int = GRID) -> Encoder:
    """An encoder with weights so large that attention is far from uniform."""
    encoder = Encoder(size, 4, grid)
    initialise(encoder, seed=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10.0)
    return encoder


@pytest.mark.parametrize("patches", [None, [7, 1, 24, 12], [0, 5, 6, 23]])
def test_attention_is_an_explicit_rotation(patches: list[int] | None) -> None:
    encoder = made(SIZE).eval()
    images = torch.randn(2, 3, 4 * GRID, 4 * GRID, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if patches is None:
            ours = encoder(images)
        else:
            ours = encoder(images, torch.tensor(patches).expand(2, 1, -1))[:, 0]
        for output, image in zip(ours, images, strict=True):
            wanted = encoded(encoder, image, patches or list(range(GRID * GRID)))
            # rounding: 1e-5; unrotated keys, swapped axes or another base: above 0.1
            torch.testing.assert_close(output, wanted, rtol=0, atol=1e-4)


# --- stochastic depth


@pytest.mark.parametrize("parallel", [False, True])
def test_drop_rates_grow_linearly_from_0(parallel: bool) -> None:
    blocks = make_blocks(dataclasses.replace(SIZE, depth=5, rope=False, parallel=parallel, drop_path=0.4))
    found = [[module.rate for module in block.modules() if isinstance(module, DropPath)] for block in blocks]
    branches = 1 if parallel else 2
    assert found == [[]] + [[pytest.approx(rate)] * branches for rate in (0.1, 0.2, 0.3, 0.4)]


def test_draws_are_frozen_and_scaled_by_what_is_kept() -> None:
    blocks = make_blocks(dataclasses.replace(SIZE, depth=3, drop_path=0.6))
    patches = np.stack([np.random.default_rng(i).permutation(196)[:20] for i in range(4000)])
    draw_drops(blocks, torch.from_numpy(patches))
    keeps = [module.keep for module in blocks.modules() if isinstance(module, DropPath)]
    assert [keep.shape for keep in keeps] == [(4000, 1, 1)] * 4
    key = sum((patches[:, i] + 1) * (2 * i + 3) ** 2 for i in range(20))
    draws = counter.uniform_np(0, 7, key, 4)
    rates = (0.3, 0.3, 0.6, 0.6)  # two branches of the second and the third block
    for branch, (keep, rate) in enumerate(zip(keeps, rates, strict=True)):
        wanted = torch.tensor([0.0 if draw < rate else 1 / (1 - rate) for draw in draws[:, branch]])
        assert torch.equal(keep.flatten(), wanted)
        # the mean is 1 within 4 standard errors: 0.042 at rate 0.3, 0.078 at 0.6; without the scale it is 0.7 and 0.4
        assert float(keep.mean()) == pytest.approx(1.0, abs=4 * math.sqrt(rate / (1 - rate) / 4000))
    correlations = np.corrcoef(torch.stack([keep.flatten() for keep in keeps]).numpy())
    # branches are independent: 4 standard errors are 0.063; a draw that two branches share: above 0.5
    assert np.abs(correlations - np.eye(4)).max() < 4 / math.sqrt(4000)
    draw_drops(blocks, None)
    assert all(module.keep is None for module in blocks.modules() if isinstance(module, DropPath))


def test_dropped_branches_are_left_out_and_kept_ones_scaled() -> None:
    encoder = made(dataclasses.replace(SIZE, depth=2, rope=False, registers=0, drop_path=0.5), grid=4).train()
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    context = torch.stack([torch.randperm(16, generator=torch.Generator().manual_seed(i))[:5] for i in range(24)])
    output = encoder(images, context[:, None])[:, 0]
    first, second = encoder.blocks
    scale = torch.stack([second.drop_path1.keep, second.drop_path2.keep])
    combinations = {tuple(pair) for pair in scale[:, :, 0, 0].T.tolist()}
    assert combinations == {(a, b) for a in (0.0, 2.0) for b in (0.0, 2.0)}  # every case occurs
    x = encoder.patch_embed(images) + encoder.pos_embed
    x = torch.stack([tokens[chosen] for tokens, chosen in zip(x, context, strict=True)])
    x = x + first.attn(first.norm1(x))
    x = x + first.mlp(first.norm2(x))
    x = x + scale[0] * second.attn(second.norm1(x))
    x = x + scale[1] * second.mlp(second.norm2(x))
    # rounding: 1e-5; a branch that is not scaled or dropped: above 0.1
    torch.testing.assert_close(output, encoder.norm(x), rtol=0, atol=1e-4)
