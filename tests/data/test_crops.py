"""Crops and flips: inside the image, distributed as torchvision's, functions of the sample number."""

import numpy as np
import pytest
import torch

from ijepa_ds.data.crops import crop_windows, flips

SCALE, RATIO = (0.3, 1.0), (3 / 4, 4 / 3)


def windows(width: int, height: int, count: int, seed: int = 0, scale=SCALE, ratio=RATIO) -> np.ndarray:
    return crop_windows(np.full(count, width), np.full(count, height), np.arange(count), seed, scale, ratio)


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (1, 1), (3000, 1), (1, 3000), (7, 400)])
def test_windows_lie_inside_and_are_not_empty(size):
    top, left, height, width = windows(*size, 2000).T
    assert top.min() >= 0 and left.min() >= 0 and height.min() >= 1 and width.min() >= 1
    assert (left + width).max() <= size[0] and (top + height).max() <= size[1]


def test_areas_and_ratios_stay_in_their_ranges():
    _, _, height, width = windows(1000, 1000, 5000).T
    share, aspect = height * width / 1e6, width / height
    assert share.min() > SCALE[0] - 0.002 and share.max() <= 1
    assert aspect.min() > RATIO[0] - 0.005 and aspect.max() < RATIO[1] + 0.005
    assert share.min() < 0.31 and share.max() > 0.95  # and the ranges are used


@pytest.mark.parametrize("size", [(400, 300), (100, 1000)])
def test_distribution_is_torchvisions(size):
    transforms = pytest.importorskip("torchvision.transforms")
    torch.manual_seed(0)
    image = torch.empty(3, size[1], size[0])
    get = transforms.RandomResizedCrop.get_params
    theirs = np.array([get(image, list(SCALE), list(RATIO)) for _ in range(4000)])
    ours = windows(*size, 4000)
    for column in range(4):
        spread = max(theirs[:, column].std(), 1e-9)
        assert abs(ours[:, column].mean() - theirs[:, column].mean()) < 0.1 * spread + 1e-6
        assert abs(ours[:, column].std() - theirs[:, column].std()) < 0.1 * spread + 1e-6


def test_images_too_narrow_for_the_ratios_get_the_central_window():
    assert np.unique(windows(3000, 300, 50, scale=(0.9, 1.0)), axis=0).tolist() == [[0, 1300, 300, 400]]
    assert np.unique(windows(300, 3000, 50, scale=(0.9, 1.0)), axis=0).tolist() == [[1300, 0, 400, 300]]


def test_functions_of_number_and_seed_alone():
    numbers = np.array([5, 900, 3, 5])
    size = np.array([640, 480, 100, 640])
    together = crop_windows(size, size, numbers, 1, SCALE, RATIO)
    alone = [crop_windows(size[i : i + 1], size[i : i + 1], numbers[i : i + 1], 1, SCALE, RATIO)[0] for i in range(4)]
    assert np.array_equal(together, np.stack(alone))
    assert np.array_equal(together[0], together[3])
    assert (windows(640, 480, 100) != windows(640, 480, 100, seed=1)).any(axis=1).sum() > 95
    assert np.array_equal(flips(np.arange(100), 0)[50:], flips(np.arange(50, 100), 0))
    assert abs(flips(np.arange(10_000), 0).mean() - 0.5) < 0.02
    assert (flips(np.arange(1000), 0) != flips(np.arange(1000), 1)).mean() > 0.4
