"""Draws against draws: whatever is drawn for a sample is uncorrelated with everything else drawn for it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch

from ijepa_ds import counter
from ijepa_ds.config import DataConfig, MasksConfig
from ijepa_ds.data import augment as augmentation
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.order import sample_indices
from ijepa_ds.masks.sampler import SAMPLERS, build_sampler

SAMPLES, STEPS = 20_000, 2_000
STREAMS = {name: number for name, number in vars(counter).items() if name.startswith("STREAM_")}
Columns = dict[str, np.ndarray]  # what is drawn -> one number of each sample


def assert_uncorrelated(columns: Columns) -> None:
    """No pair is correlated, neither its values nor, where they are fine, their distances from the mean; 5 standard errors."""
    rows = dict(columns)
    for name, values in columns.items():
        if len(np.unique(values)) > len(values) / 3:
            rows[f"distance of {name}"] = np.abs(values - values.mean())
    names, stacked = list(rows), np.array(list(rows.values()), dtype=np.float64)
    assert (stacked.std(axis=1) > 0).all(), [n for n, s in zip(names, stacked.std(axis=1), strict=True) if not s > 0]
    found = np.corrcoef(stacked)
    own = [name.removeprefix("distance of ") for name in names]
    bound = 5 / np.sqrt(stacked.shape[1])
    assert not {
        (names[i], names[j]): round(float(found[i, j]), 3)
        for i, j in itertools.combinations(range(len(names)), 2)
        if own[i] != own[j] and abs(found[i, j]) > bound
    }


def augmentations(numbers: np.ndarray, seed: int, patch: pytest.MonkeyPatch) -> Columns:
    """Factors, sigma, decisions and the order, as the operations receive them or as they change the images."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 3, 3, generator=generator).expand(len(numbers), 3, 3, 3).contiguous()
    index, off, seen = torch.from_numpy(numbers), DataConfig(source="", crop_size=3), {}
    strengths = (0.4, 0.4, 0.4, 0.1)

    def blend(images: torch.Tensor, operation: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        seen.setdefault("order", []).append(operation)
        seen["factors"] = factors
        return images * 0.5

    def blur(images: torch.Tensor, sigma: torch.Tensor, largest: float) -> torch.Tensor:
        seen["sigma"] = sigma
        return images * 0.5

    columns: Columns = {}
    with patch.context() as inside:
        inside.setattr(augmentation, "_blend", blend)
        inside.setattr(augmentation, "gaussian_blur", blur)
        for name, cfg in {
            "jitter": replace(off, color_jitter=strengths, color_jitter_probability=0.5),
            "grayscale": replace(off, grayscale=0.5),
            "blur": replace(off, blur=0.5),
        }.items():
            changed = augmentation.augment(x, index, cfg, seed) != x
            columns[f"augmentation {name}"] = changed.flatten(1).any(dim=1).numpy()
    for name, factor in zip(("brightness", "contrast", "saturation", "hue"), seen["factors"].T, strict=True):
        columns[f"augmentation {name}"] = factor.numpy()
    columns["augmentation sigma"] = seen["sigma"].numpy()
    orders = torch.stack(seen["order"], dim=1)
    every = {order: number for number, order in enumerate(itertools.permutations(range(4)))}
    columns["augmentation order"] = np.array([every[tuple(order)] for order in orders.tolist()])
    return columns


def crops(numbers: np.ndarray, seed: int) -> Columns:
    """Area, aspect ratio, corner and flip; most first tries fit."""
    side, n = 4000, len(numbers)
    drawn = crop_windows(np.full(n, side), np.full(n, side), numbers, seed, (0.2, 0.5), (0.6, 1.2)).astype(np.float64)
    top, left, height, width = drawn.T
    return {
        "crop area": height * width,
        "crop aspect": np.log(width / height),
        "crop top": top / (side - height + 1),
        "crop left": left / (side - width + 1),
        "flip": flips(numbers, seed),
    }


def images(numbers: np.ndarray) -> Columns:
    """Which image of a large data set a sample is."""
    return {"image": sample_indices(numbers, 10**9, 3).astype(np.float64)}


def assert_uniform(columns: Columns, names: Iterable[str]) -> None:
    """Chi-square over 20 equal parts of the range."""
    for name in names:
        values = columns[name]
        low, high = values.min(), values.max()
        counts = np.histogram((values - low) / (high - low), bins=20, range=(0, 1))[0]
        expected = len(values) / 20
        assert ((counts - expected) ** 2 / expected).sum() < 55, name  # 99.998 % at 19 degrees of freedom


def test_crops_flips_augmentations_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.arange(SAMPLES)
    columns = crops(numbers, 3) | augmentations(numbers, 3, monkeypatch) | images(numbers)
    # a sample's neighbour has numbers of its own
    shifted = {f"neighbour's {name}": values for name, values in crops(numbers + 1, 3).items()}
    assert_uncorrelated(columns | shifted)
    factors = (f"augmentation {name}" for name in ("brightness", "contrast", "saturation", "hue", "sigma"))
    assert_uniform(columns, itertools.chain(factors, ("crop top", "crop left", "image")))


def test_every_decision_is_made_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = augmentations(np.arange(SAMPLES), 3, monkeypatch)
    for name in ("jitter", "grayscale", "blur"):
        assert abs(columns[f"augmentation {name}"].mean() - 0.5) < 4 * 0.5 / np.sqrt(SAMPLES), name


def test_all_24_orders_are_equally_likely(monkeypatch: pytest.MonkeyPatch) -> None:
    orders = augmentations(np.arange(SAMPLES), 3, monkeypatch)["augmentation order"]
    counts = np.bincount(orders, minlength=24)
    expected = SAMPLES / 24
    assert ((counts - expected) ** 2 / expected).sum() < 60  # 99.996 % at 23 degrees of freedom


@pytest.mark.parametrize("name", SAMPLERS)
def test_masks_with_everything_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image a step, so that numbers of steps and samples are the same: the worst case."""
    grid, numbers = 24, np.arange(STEPS)
    cfg = MasksConfig(
        sampler=name,  # type: ignore[arg-type]
        num_contexts=2,
        num_targets=3,
        context_scale=(0.3, 0.8),
        target_scale=(0.1, 0.4),
        allow_overlap=True,
        truncation_group=1,
        context_tokens=1 if name == "unbiased" else None,
    )
    sampler = build_sampler(cfg, grid, 3, batch_size=1)
    side, rows = grid - (name == "published"), []
    for step in range(STEPS):
        plan = sampler.planner.plan(step, 0, 1)
        height, width = plan.target_size
        available = plan.available[0].reshape(-1, grid, grid)
        tops, lefts = available.any(axis=2).argmax(axis=1), available.any(axis=1).argmax(axis=1)
        block = int(np.sqrt(available[0].sum()))
        corners = np.stack(np.divmod(plan.target_first[0], grid), axis=1)
        corners = (corners + 0.5) / (side - np.array([height, width]) + 1)
        contexts = (np.stack([tops, lefts], axis=1) + 0.5) / (side - block + 1)
        chosen = int(sampler.sample(step, 0, 1, "cpu").context[0, 0, 0])
        kept = (np.flatnonzero(available[0]).tolist().index(chosen) + 0.5) / block**2
        size = [height * width, block] if name == "published" else [height * width, np.log(height / width), block]
        rows.append([*size, *corners.flatten(), *contexts.flatten(), *([kept] if name == "unbiased" else [])])
    drawn = np.array(rows, dtype=np.float64).T
    columns = {f"mask {number}": values for number, values in enumerate(drawn)}
    assert_uncorrelated(columns | crops(numbers, 3) | augmentations(numbers, 3, monkeypatch) | images(numbers))


def test_streams_have_numbers_of_their_own() -> None:
    assert len(STREAMS) >= 8
    assert len(set(STREAMS.values())) == len(STREAMS)


def test_streams_are_uncorrelated_with_each_other_and_with_their_neighbours() -> None:
    index = np.arange(SAMPLES)
    columns: Columns = {}
    for name, stream in STREAMS.items():
        for draw, values in enumerate(counter.uniform_np(3, stream, index, 3).T):
            columns[f"{name} {draw}"] = values
        columns[f"{name}, next index"] = counter.uniform_np(3, stream, index + 1, 1)[:, 0]
        columns[f"{name}, next seed"] = counter.uniform_np(4, stream, index, 1)[:, 0]
        columns[f"{name}, attempt 1"] = counter.uniform_np(counter.fold(3, 1), stream, index, 1)[:, 0]
    assert_uncorrelated(columns)
    assert_uniform(columns, columns)
