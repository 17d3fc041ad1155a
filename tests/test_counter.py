"""Counter-based random numbers: one function of (seed, stream, index, draw), whoever computes it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ijepa_ds import counter

_INDEX = np.array([0, 1, 2, 1000, 2**31, 2**40 + 7, 2**62, 2**63 - 1, -1], dtype=np.int64)


def _reference(seed: int, stream: int, index: int, draw: int) -> float:
    """Compute one number with Python's unbounded integers, written independently of the module."""
    m = 2**64
    golden = 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z %= m
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % m
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % m
        return z ^ (z >> 31)

    key = mix(mix(seed + golden) + (stream + 1) * golden)
    return (mix(mix(index * golden + key) + (draw + 1) * golden) >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 1, -3, 2**64 + 5, 123456789123456789])
def test_numpy_torch_and_python_agree_to_the_bit(seed: int) -> None:
    in_numpy = counter.uniform_np(seed, counter.STREAM_MASK, _INDEX, 7)
    in_torch = counter.uniform(seed, counter.STREAM_MASK, torch.from_numpy(_INDEX), 7)
    in_python = [[_reference(seed, counter.STREAM_MASK, int(n), j) for j in range(7)] for n in _INDEX]
    assert in_numpy.dtype == np.float64 and in_torch.dtype == torch.float64
    assert np.array_equal(in_numpy, in_torch.numpy())
    assert np.array_equal(in_numpy, np.array(in_python))


def test_mixing_is_splitmix64() -> None:
    # First output of the published reference generator (splitmix64.c) started at 1234567.
    assert counter._mix_int(1234567 + counter._GOLDEN) == 6457827717110365317


def test_number_of_draws_and_company_do_not_matter() -> None:
    many = counter.uniform_np(5, counter.STREAM_CROP, np.arange(100), 9)
    assert np.array_equal(counter.uniform_np(5, counter.STREAM_CROP, np.arange(40, 60), 4), many[40:60, :4])


def test_numbers_are_uniform_and_uncorrelated() -> None:
    values = counter.uniform_np(0, counter.STREAM_CROP, np.arange(20_000), 4)
    assert values.min() >= 0 and values.max() < 1
    histogram = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in values.T])
    chi_square = ((histogram - 1000) ** 2 / 1000).sum(1)
    assert (chi_square < 43.8).all()  # 99.9 % of chi-square with 19 degrees of freedom
    others = [
        counter.uniform_np(1, counter.STREAM_CROP, np.arange(20_000), 1),  # next seed
        counter.uniform_np(0, counter.STREAM_FLIP, np.arange(20_000), 1),  # next stream
        counter.uniform_np(0, counter.STREAM_CROP, np.arange(1, 20_001), 1),  # next index
    ]
    correlation = np.corrcoef(np.concatenate([values, *others], axis=1).T)
    assert np.abs(correlation - np.eye(7)).max() < 4 / np.sqrt(20_000)


def test_fold_depends_on_every_number_and_their_order() -> None:
    folded = {counter.fold(s, *rest) for s in range(4) for rest in [(), (0,), (1,), (0, 1), (1, 0), (2, 3), (3, 2)]}
    assert len(folded) == 28
    assert all(0 <= value < 2**64 for value in folded)
