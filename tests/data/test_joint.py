"""Crops and flips as joint distributions: corners in two dimensions, shapes against torchvision's, tries, exact shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ijepa_ds.data.crops import crop_windows, flips

COUNT, THEIRS = 20_000, 4_000
WIDE, TALL = (640, 250), (250, 640)  # width, height
SCALE, RATIO = (0.2, 0.9), (0.5, 1.2)


def windows(size: tuple[int, int], scale=SCALE, ratio=RATIO, count: int = COUNT) -> np.ndarray:
    """(top, left, height, width) of each sample; float64 [n, 4]."""
    drawn = crop_windows(np.full(count, size[0]), np.full(count, size[1]), np.arange(count), 0, scale, ratio)
    return drawn.astype(np.float64)


@pytest.fixture(scope="module")
def theirs() -> dict[tuple[int, int], np.ndarray]:
    """The same from torchvision's RandomResizedCrop."""
    get = pytest.importorskip("torchvision.transforms").RandomResizedCrop.get_params
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            (width, height): np.array([get(torch.empty(1, height, width), SCALE, RATIO) for _ in range(THEIRS)], dtype=float)
            for width, height in (WIDE, TALL)
        }


def limit(freedom: int) -> float:
    """About the 99.99 % quantile of chi-square (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


def assert_same_histogram(ours: np.ndarray, theirs: np.ndarray, bins: int = 8) -> None:
    """Two-sample chi-square test of points [n, 2] on a grid over what they cover."""
    both = np.concatenate([ours, theirs])
    edges = [np.linspace(both[:, axis].min(), both[:, axis].max() + 1e-9, bins + 1) for axis in (0, 1)]
    one, other = (np.histogram2d(*points.T, bins=edges)[0] for points in (ours, theirs))
    filled, ratio = one + other >= 30, math.sqrt(len(theirs) / len(ours))
    chi_square = ((one * ratio - other / ratio) ** 2 / np.maximum(one + other, 1))[filled].sum()
    assert chi_square < limit(int(filled.sum()) - 1), (chi_square, int(filled.sum()) - 1)


PAIRS = {"top, left": (0, 1), "height, width": (2, 3), "top, height": (0, 2), "left, width": (1, 3)}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
def test_pairs_are_distributed_as_torchvisions(size: tuple[int, int], pair: str, theirs) -> None:
    columns = list(PAIRS[pair])
    assert_same_histogram(windows(size)[:, columns], theirs[size][:, columns])


@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
def test_centred_windows_are_as_frequent_as_torchvisions(size: tuple[int, int], theirs) -> None:
    centre = centred(size)
    assert 0.01 < np.mean(theirs[size] == centre)
    shares = [(found == centre).all(axis=1).mean() for found in (windows(size), theirs[size])]
    assert abs(shares[0] - shares[1]) < 4 * math.sqrt(shares[1] * (1 / COUNT + 1 / THEIRS))


def centred(size: tuple[int, int]) -> np.ndarray:
    """The window where no try fits, written independently of the module."""
    width = min(size[0], max(1, round(size[1] * RATIO[1])))
    height = min(size[1], max(1, round(size[0] / RATIO[0])))
    return np.array([(size[1] - height) // 2, (size[0] - width) // 2, height, width])


def test_ten_tries() -> None:
    """The share of centred windows is that of ten independent failures; nine or eleven would be 0.03 off."""
    size, scale, rng = (1000, 300), (0.25, 0.45), np.random.default_rng(0)
    area = size[0] * size[1] * rng.uniform(*scale, 2_000_000)
    aspect = np.exp(rng.uniform(*np.log(RATIO), 2_000_000))
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = np.mean((width <= size[0]) & (height <= size[1]))
    found, expected = (windows(size, scale) == centred(size)).all(axis=1).mean(), (1 - fits) ** 10
    assert 0.03 < fits * expected < 0.05  # difference to eleven tries
    assert abs(found - expected) < 0.013  # 4 standard errors


def test_every_corner_is_equally_likely() -> None:
    """A window of 3 x 3 in an image 8 wide and 6 high: 4 tops and 6 lefts, the last ones included."""
    top, left, height, width = windows((8, 6), scale=(0.19, 0.19), ratio=(1.0, 1.0), count=48_000).astype(int).T
    assert set(height) == set(width) == {3}
    counts = np.bincount(top * 6 + left, minlength=24)
    assert len(counts) == 24 and ((counts - 2000) ** 2 / 2000).sum() < limit(23)


def test_half_of_the_samples_are_mirrored() -> None:
    share = flips(np.arange(200_000), 0).mean()
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(200_000)  # 0.0045: notices 0.505
