"""The published sampler, held against statistics of the published code and a slow, obvious rewriting."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds import counter
from ijepa_ds.config import MasksConfig
from ijepa_ds.masks.blocks import Size, possible_sizes
from ijepa_ds.masks.published import Published
from ijepa_ds.masks.sampler import build_sampler, check

_DATA = Path(__file__).parents[1] / "recorded" / "mask-statistics.json"


def _statistics(file: Path, name: str) -> tuple[dict, int, MasksConfig]:
    """Read what the published code did on one grid, and its settings."""
    row = json.loads(file.read_text())[name]
    cfg = MasksConfig(
        num_targets=row["num_pred_masks"],
        context_scale=tuple(row["enc_mask_scale"]),
        target_scale=tuple(row["pred_mask_scale"]),
        target_aspect=tuple(row["aspect_ratio"]),
        min_keep=row["min_keep"],
        truncation_group=row["batch"],
    )
    return row, row["image_size"] // row["patch_size"], cfg


def _draw(grid: int, cfg: MasksConfig, steps: int) -> dict[str, np.ndarray]:
    """Measure per step: target size, context before and after the cut, every patch's share in both roles."""
    batch = cfg.truncation_group
    sampler = build_sampler(cfg, grid, seed=0, batch_size=batch)
    rows: dict[str, list] = {key: [] for key in ("tokens", "before", "after", "target", "context")}
    for step in range(steps):
        plan = sampler.planner.plan(step, 0, batch)
        targets = sampler.sample(step, 0, batch, "cpu").targets.numpy()
        hits = np.bincount(targets.ravel(), minlength=grid * grid)
        rows["tokens"].append(targets.shape[-1])
        rows["before"].append(plan.available.sum(-1).mean())
        rows["after"].append(plan.context_length)
        rows["target"].append(hits / (batch * cfg.num_targets))
        rows["context"].append(plan.available.mean((0, 1)))
    return {key: np.array(value) for key, value in rows.items()}


def _assert_matches(row: dict, grid: int, cfg: MasksConfig, steps: int) -> None:
    """Compare with what the published code did in `row["batches"]` steps; all noise is counted in steps."""
    drawn, batches = _draw(grid, cfg, steps), row["batches"]
    observed = Counter({int(key): value for key, value in row["target_tokens_per_block"].items()})
    assert set(observed) <= set(drawn["tokens"].tolist())
    chi_square = 0.0
    for tokens, times in Counter(drawn["tokens"].tolist()).items():
        expected = times / steps * batches
        chi_square += (observed[tokens] - expected) ** 2 / expected
    assert chi_square < 20  # 99.9 % at 5 degrees of freedom; no grid has more than 6 counts

    def z(ours: np.ndarray, theirs: float | list[float]) -> np.ndarray:
        spread = ours.std(0, ddof=1) * math.sqrt(1 / batches + 1 / steps)
        return (ours.mean(0) - np.array(theirs)) / np.maximum(spread, 1e-4)  # theirs have four digits

    assert abs(z(drawn["before"], row["context_tokens_per_image"]["mean"])) < 3.5
    assert abs(z(drawn["after"], row["context_tokens_after_truncation_to_batch_minimum_mean"])) < 3.5
    for role, key in (
        ("target", "target_inclusion_frequency"),
        ("context", "context_inclusion_frequency_before_truncation"),
    ):
        theirs = np.array(row[key])
        assert np.array_equal(theirs == 0, drawn[role].mean(0) == 0)  # the last row and column, and no other
        scores = z(drawn[role], row[key])
        assert np.abs(scores).max() < 4.5 and (scores**2).mean() < 2.5


@pytest.mark.parametrize("name", ["cifar-32-4", "vit-16-224"])
def test_statistics_are_those_of_the_published_code(name: str) -> None:
    _assert_matches(*_statistics(_DATA, name), steps=1000)


def test_statistics_are_those_of_the_published_code_at_huge_14(shared: Path) -> None:
    _assert_matches(*_statistics(shared / "oracle" / "mask-statistics.json", "vit-h-14-224"), steps=500)


@pytest.mark.parametrize(
    "change",
    [
        {"target_aspect": (0.9, 1.5)},
        {"target_aspect": (1.0, 2.0)},
        {"target_scale": (0.17, 0.2)},
        {"context_scale": (0.6, 0.8)},
        {"num_targets": 3},
        {"truncation_group": 8},
    ],
)
def test_statistics_can_tell_a_wrong_sampler(change: dict[str, object]) -> None:
    row, grid, cfg = _statistics(_DATA, "vit-16-224")
    with pytest.raises(AssertionError):
        _assert_matches(row, grid, replace(cfg, **change), steps=300)


@pytest.mark.parametrize(("group", "expected"), [(1, 110), (16, 80), (64, 71.6), (128, 69)])
def test_context_after_the_cut_shrinks_with_the_group(group: int, expected: float) -> None:
    # ViT-H/14 at 224: the published figures, for images cut coupled.
    planner = build_sampler(MasksConfig(truncation_group=group), 16, seed=0, batch_size=group).planner
    steps = {1: 2000}.get(group, 300)
    lengths = [planner.plan(step, 0, group).context_length for step in range(steps)]
    error = np.std(lengths) / math.sqrt(steps)
    assert abs(np.mean(lengths) - expected) < 3 * error + 1


def _slow(rng: random.Random, grid: int, cfg: MasksConfig, images: int) -> list[tuple[int, int]]:
    """One published step, patch by patch: every image's context patches and how many targets it sees."""

    def size(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        r = rng.random()
        area = int(grid * grid * (scale[0] + r * (scale[1] - scale[0])))
        ratio = aspect[0] + r * (aspect[1] - aspect[0])
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(h, grid - 1), min(w, grid - 1)

    def block(h: int, w: int) -> set[tuple[int, int]]:
        top, left = rng.randrange(grid - h), rng.randrange(grid - w)
        return {(y, x) for y in range(top, top + h) for x in range(left, left + w)}

    target, context = size(cfg.target_scale, cfg.target_aspect), size(cfg.context_scale, (1, 1))
    found = []
    for _ in range(images):
        targets = [block(*target) for _ in range(cfg.num_targets)]
        failures, kept_away, visible = 0, list(targets), set()
        while len(visible) <= cfg.min_keep:
            if failures and failures % 20 == 0:
                kept_away = targets[: cfg.num_targets - failures // 20]
            visible = block(*context) - set().union(*kept_away)
            failures += 1
        found.append((len(visible), sum(bool(visible & t) for t in targets[1:])))
    return found


def test_redraws_and_relaxations_follow_the_published_rule() -> None:
    grid, steps, group = 8, 150, 32
    cfg = MasksConfig(min_keep=11, target_scale=(0.25, 0.3), context_scale=(0.4, 0.5), num_targets=3, truncation_group=group)
    rng = random.Random(0)
    slow = np.array([_slow(rng, grid, cfg, group) for _ in range(steps)])  # [steps, images, 2]
    sampler, fast = build_sampler(cfg, grid, seed=0, batch_size=group), []
    for step in range(steps):
        plan = sampler.planner.plan(step, 0, group)
        targets = sampler.sample(step, 0, group, "cpu").targets.numpy()
        seen = np.take_along_axis(plan.available[:, 0], targets.reshape(group, -1), 1)
        seen = seen.reshape(targets.shape).any(-1)[:, 1:].sum(1)
        fast.append(np.stack([plan.available[:, 0].sum(-1), seen], 1))
        assert plan.context_length == fast[-1][:, 0].min() > cfg.min_keep
    fast = np.array(fast)
    assert (slow[..., 1] > 0).mean() > 0.02  # the setting does reach the relaxations
    for measure in (lambda a: a[..., 0], lambda a: a[..., 1], lambda a: a[..., 0] == cfg.min_keep + 1):
        a, b = measure(slow).mean(1), measure(fast).mean(1)
        assert abs(a.mean() - b.mean()) < 3.5 * math.sqrt((a.var() + b.var()) / steps)


def _contexts(cfg: MasksConfig, grid: int, step: int, target: Size, block: Size) -> tuple[np.ndarray, list[int]]:
    """Contexts [n, N] of one step, and the attempt at which each was accepted; one image and one draw at a time."""

    def patches(draw: np.ndarray, size: Size) -> set[int]:
        top, left = (int(u * (grid - side)) for u, side in zip(draw, size, strict=True))
        return {y * grid + x for y in range(top, top + size[0]) for x in range(left, left + size[1])}

    n, m = cfg.truncation_group, cfg.num_targets
    contexts, attempts = np.zeros((n, grid * grid), dtype=bool), []
    for image in range(n):
        number = np.array([step * n + image])
        first = counter.uniform_np(0, counter.STREAM_MASK, number, 2 * (m + 1)).reshape(m + 1, 2)
        targets = [patches(draw, target) for draw in first[:m]]
        for attempt in itertools.count():
            draw = first[m]
            if attempt:
                draw = counter.uniform_np(counter.fold(0, attempt), counter.STREAM_MASK, number, 2)[0]
            kept_away = targets[: m - attempt // 20]  # draws 20 to 39 may overlap the last target
            left = patches(draw, block) - set().union(*kept_away)
            if len(left) > cfg.min_keep:
                break
        contexts[image, list(left)] = True
        attempts.append(attempt)
    return contexts, attempts


def test_relaxation_happens_at_attempts_20_40_and_60_exactly() -> None:
    """The first 20 draws keep away from every target, the next 20 from all but the last, and so on."""
    square = {"target_scale": (0.4, 0.4), "target_aspect": (1, 1), "context_scale": (0.4, 0.4)}  # blocks of 5 x 5 patches
    cfg = MasksConfig(**square, num_targets=3, min_keep=9, truncation_group=64)
    planner = build_sampler(cfg, 8, seed=0, batch_size=64).planner
    seen: Counter[int] = Counter()
    for step in range(4):
        plan = planner.plan(step, 0, 64)
        assert plan.target_size == (5, 5)
        contexts, attempts = _contexts(cfg, 8, step, (5, 5), (5, 5))
        assert np.array_equal(plan.available[:, 0], contexts)
        seen.update(attempts)
    # accepted by the first draw after a relaxation: a relaxation one attempt later changes each of these images; one
    # attempt earlier changes about as many
    assert min(seen[attempt] for attempt in (20, 40, 60)) > 10, sorted(seen.items())


def test_cut_keeps_the_first_patches_in_raster_order_for_the_whole_group() -> None:
    cfg = MasksConfig(min_keep=4, truncation_group=16)
    sampler = build_sampler(cfg, 8, seed=0, batch_size=40)  # the last group is half beyond the batch
    for first in (0, 16, 32):
        lengths = set()
        for position in range(first, min(first + 16, 40), 4):
            plan = sampler.planner.plan(3, position, 4)
            context = sampler.sample(3, position, 4, "cpu").context.numpy()
            for row in range(4):
                available = np.flatnonzero(plan.available[row, 0])
                assert np.array_equal(context[row, 0], available[: plan.context_length])
            lengths.add(plan.context_length)
        assert len(lengths) == 1


def test_group_beyond_the_batch_is_cut_like_a_full_one() -> None:
    cfg = MasksConfig(truncation_group=128)
    alone = build_sampler(cfg, 16, seed=0, batch_size=4).planner
    full = build_sampler(cfg, 16, seed=0, batch_size=128).planner
    short, long = ([p.plan(step, 0, 4).context_length for step in range(150)] for p in (alone, full))
    error = math.sqrt((np.var(short) + np.var(long)) / 150)
    assert abs(np.mean(short) - np.mean(long)) < 3.5 * error


def test_micro_batch_across_two_groups_is_refused() -> None:
    cfg = MasksConfig(truncation_group=16)
    sampler = build_sampler(cfg, 16, seed=0, batch_size=48)
    with pytest.raises(ValueError, match=r"masks\.truncation_group is 16.*micro-batch"):
        sampler.sample(0, 12, 12, "cpu")
    assert "masks.truncation_group" in check(cfg, 16, batch_size=48, micro_batch=12)[0]
    assert check(cfg, 16, batch_size=48, micro_batch=8) == []
    assert check(cfg, 16, batch_size=12, micro_batch=6) == []


@pytest.mark.parametrize(
    ("grid", "change", "words"),
    [
        (8, {}, r"target blocks of 3 x 3 = 9 patches on a 8 x 8 grid.*masks\.min_keep = 10"),
        (16, {"context_scale": (0.02, 1.0)}, r"masks\.context_scale.*context blocks of 2 x 2"),
        (16, {"target_scale": (0.9, 1.0), "target_aspect": (1.0, 1.0)}, r"a context at most 0 patches"),
        (16, {"context_tokens": 60}, r"masks\.context_tokens.*unbiased"),
    ],
)
def test_what_hangs_the_published_code_is_refused(grid: int, change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_sampler(replace(MasksConfig(), **change), grid, seed=0, batch_size=8)


def test_refusal_of_small_targets_is_exact() -> None:
    assert check(MasksConfig(min_keep=9), 8) != []
    assert check(MasksConfig(min_keep=8), 8) == []


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("grid", [8, 13, 16])
def test_possible_sizes_are_those_a_dense_scan_finds(grid: int, coupled: bool) -> None:
    scale, aspect = (0.15, 0.2), (0.75, 1.5)
    scan, points = set(), 4000 if coupled else 150
    for i in range(points):
        area = int(grid * grid * (scale[0] + (i + 0.5) / points * (scale[1] - scale[0])))
        for j in [i] if coupled else range(points):
            ratio = aspect[0] + (j + 0.5) / points * (aspect[1] - aspect[0])
            scan.add((round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))))
    assert possible_sizes(grid, scale, aspect, grid - 1, coupled=coupled) == scan


def test_sizes_of_a_fixed_scale_and_aspect() -> None:
    assert possible_sizes(8, (0.25, 0.25), (1.0, 1.0), 7, coupled=True) == {(4, 4)}
    sizes = Published(MasksConfig(target_scale=(0.25, 0.25), target_aspect=(1.0, 1.0)), 8, 0, 4)
    assert sizes.plan(0, 0, 4).target_size == (4, 4)
