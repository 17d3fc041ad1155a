"""The order: exact permutations, all different, at any place and size."""

import itertools

import numpy as np
import pytest

from ijepa_ds.data.order import sample_indices


def epoch(number: int, num_samples: int, seed: int = 0) -> np.ndarray:
    return sample_indices(np.arange(number * num_samples, (number + 1) * num_samples), num_samples, seed)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5, 16, 17, 100, 1281, 9973])
def test_every_epoch_holds_every_image_once(num_samples):
    for number in (0, 1, 7):
        assert np.array_equal(np.sort(epoch(number, num_samples)), np.arange(num_samples))


def test_epochs_and_seeds_differ():
    orders = [epoch(0, 1000), epoch(1, 1000), epoch(2, 1000), epoch(0, 1000, seed=1), epoch(1, 1000, seed=1)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 10  # 1 expected of two random permutations
    assert (orders[0] == np.arange(1000)).sum() < 10


def test_single_numbers_agree_with_batches_that_straddle_epochs():
    numbers = np.arange(90, 320)  # epochs 0 to 3 of 100
    together = sample_indices(numbers, 100, 3)
    alone = [sample_indices(np.array([n]), 100, 3)[0] for n in numbers]
    assert np.array_equal(together, alone)
    assert np.array_equal(together, np.concatenate([epoch(i, 100, seed=3) for i in range(4)])[90:320])


def test_orders_look_random():
    for num_samples in (5, 12):
        orders = sample_indices(np.arange(1500 * num_samples), num_samples, 0).reshape(1500, num_samples)
        counts = np.stack([np.bincount(column, minlength=num_samples) for column in orders.T])
        expected = 1500 / num_samples
        chi2 = ((counts - expected) ** 2 / expected).sum()
        freedom = (num_samples - 1) ** 2
        assert chi2 < freedom + 5 * np.sqrt(2 * freedom)
        if num_samples == 5:
            assert len({tuple(order) for order in orders.tolist()}) == 120  # every order of five occurs


def test_neighbours_are_scattered():
    order = epoch(0, 10_000)
    steps = np.abs(np.diff(order))
    assert abs(steps.mean() - 10_000 / 3) < 150  # of random pairs
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_a_huge_data_set_needs_no_table():
    num_samples = 3 * 10**9
    numbers = np.arange(1000) + 5 * num_samples - 500
    indices = sample_indices(numbers, num_samples, 0)
    assert indices.min() >= 0 and indices.max() < num_samples
    assert len(np.unique(indices)) == 1000
