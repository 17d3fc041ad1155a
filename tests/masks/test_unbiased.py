"""The unbiased sampler: every patch in both roles, one length, no patch favoured by the cut."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ijepa_ds.config import MasksConfig
from ijepa_ds.masks.blocks import min_context_patches, possible_sizes
from ijepa_ds.masks.sampler import Sampler, build_sampler, check
from ijepa_ds.masks.unbiased import Unbiased

_CFG = MasksConfig(sampler="unbiased")


def _shares(grid: int, steps: int, batch: int = 64) -> dict[str, np.ndarray]:
    """Measure the share of every patch in both roles, per step: [steps, grid, grid]."""
    sampler = build_sampler(_CFG, grid, seed=0, batch_size=batch)
    found: dict[str, list[np.ndarray]] = {"target": [], "context": []}
    for step in range(steps):
        masks = sampler.sample(step, 0, batch, "cpu")
        for role, lists in (("target", masks.targets), ("context", masks.context)):
            share = np.bincount(lists.flatten().numpy(), minlength=grid * grid) / batch
            found[role].append(share.reshape(grid, grid))
    return {role: np.array(share) for role, share in found.items()}


@pytest.mark.parametrize("grid", [8, 14])
def test_every_patch_has_both_roles_and_mirrored_ones_alike(grid: int) -> None:
    for share in _shares(grid, steps=400).values():
        assert share.mean(0).min() > 0
        for axis in (1, 2):
            difference = share - np.flip(share, axis)
            inner = np.abs(difference).max(0) > 0  # the middle line is its own mirror image
            score = difference.mean(0)[inner] / (difference.std(0, ddof=1)[inner] / math.sqrt(len(share)))
            assert np.abs(score).max() < 4.5 and (score**2).mean() < 2


def test_length_is_one_for_all_steps_ranks_and_seeds_and_fits_most_images() -> None:
    for grid in (8, 16):
        planners = [build_sampler(_CFG, grid, seed=seed, batch_size=64).planner for seed in (0, 1)]
        lengths = {p.plan(step, first, 8).context_length for p in planners for step in range(5) for first in (0, 8)}
        assert len(lengths) == 1
        length = lengths.pop()
        first_draws = Unbiased(_CFG, grid, seed=9, batch_size=64, context_length=1)
        available = np.concatenate([first_draws.plan(step, 0, 64).available.sum(-1) for step in range(150)])
        assert 0.93 < (available >= length).mean() < 0.975
        assert (available >= length + 3).mean() < 0.95


def test_asked_length_is_kept() -> None:
    sampler = build_sampler(replace(_CFG, context_tokens=77, num_contexts=2), 16, seed=0, batch_size=16)
    assert sampler.sample(0, 0, 16, "cpu").context.shape == (16, 2, 77)


def test_kept_patches_are_a_uniform_choice_of_the_available_ones() -> None:
    sampler = build_sampler(_CFG, 16, seed=0, batch_size=64)
    tenths, expected = np.zeros(10), np.zeros(10)
    for step in range(40):
        available = sampler.planner.plan(step, 0, 64).available[:, 0]
        context = sampler.sample(step, 0, 64, "cpu").context[:, 0]
        kept = np.zeros_like(available)
        np.put_along_axis(kept, context.numpy(), True, 1)
        assert not (kept & ~available).any()
        total = available.sum(1, keepdims=True)
        place = (available.cumsum(1) - 1) * 10 // total  # tenth of the list, in raster order
        share = context.shape[1] / total
        for tenth in range(10):
            here = available & (place == tenth)
            tenths[tenth] += (here & kept).sum()
            expected[tenth] += (here * share).sum()
    assert ((tenths - expected) ** 2 / expected).sum() < 27.9  # 99.9 % at 9 degrees of freedom


def test_scale_and_log_aspect_are_uniform_and_independent() -> None:
    cfg = replace(_CFG, target_scale=(0.1, 0.3))
    planner = build_sampler(cfg, 64, seed=0, batch_size=1).planner
    sizes = np.array([planner.plan(step, 0, 1).target_size for step in range(300)], dtype=float)
    scale, aspect = sizes.prod(1) / 64**2, np.log(sizes[:, 0] / sizes[:, 1])
    for value, low, high in ((scale, 0.1, 0.3), (aspect, math.log(0.75), math.log(1.5))):
        quarters = np.histogram((value - low) / (high - low), bins=4, range=(-0.05, 1.05))[0]
        assert ((quarters - 75) ** 2 / 75).sum() < 16.3  # 99.9 % at 3 degrees of freedom
    assert abs(np.corrcoef(scale, aspect)[0, 1]) < 3.5 / math.sqrt(300)


@pytest.mark.parametrize("overlap", [False, True])
def test_last_resort_always_leaves_enough(overlap: bool) -> None:
    # The longest length the areas allow: nearly no first draw reaches it.
    cfg, grid = replace(_CFG, allow_overlap=overlap, num_contexts=2, target_scale=(0.3, 0.4)), 10
    contexts = possible_sizes(grid, cfg.context_scale, (1.0, 1.0), grid, coupled=True)
    targets = possible_sizes(grid, cfg.target_scale, cfg.target_aspect, grid, coupled=False)
    room = min_context_patches(contexts, targets, grid)[0]
    planner = Unbiased(cfg, grid, seed=0, batch_size=32, context_length=room)
    sampler = Sampler(planner, grid, seed=0, batch_size=32)
    stacked = torch.zeros(2)
    for step in range(40):
        assert (planner.plan(step, 0, 32).available.sum(-1) >= room).all()
        masks = sampler.sample(step, 0, 32, "cpu")
        assert masks.context.shape == (32, 2, room)
        hit = (masks.context.flatten(1)[:, :, None] == masks.targets.flatten(1)[:, None]).any()
        assert overlap or not hit
        one_place = (masks.targets == masks.targets[:, :1]).flatten(1).all(1)
        stacked += torch.tensor([one_place.sum(), 32])
    assert overlap or stacked[0] > 0.1 * stacked[1]


@pytest.mark.parametrize(
    ("grid", "change", "words"),
    [
        (16, {"context_tokens": 150}, r"masks\.context_tokens is 150, expected at most \d+"),
        (8, {"target_scale": (0.9, 1.0)}, r"cover the whole context"),
        (4, {"target_scale": (0.01, 0.2)}, r"masks\.target_scale.*target blocks of 0 x 0"),
    ],
)
def test_what_cannot_be_satisfied_is_refused(grid: int, change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_sampler(replace(_CFG, **change), grid, seed=0, batch_size=8)


def test_longest_length_named_by_the_refusal_is_accepted() -> None:
    message = check(replace(_CFG, context_tokens=250), 16)[0]
    longest = int(message.split("at most ")[1].split()[0])
    assert check(replace(_CFG, context_tokens=longest), 16) == []
    assert check(replace(_CFG, context_tokens=longest + 1), 16) != []


def test_small_grids_that_hang_the_published_code_work() -> None:
    assert check(MasksConfig(), 8) != []
    masks = build_sampler(_CFG, 8, seed=0, batch_size=4).sample(0, 0, 4, "cpu")
    assert masks.context.shape[0] == 4
