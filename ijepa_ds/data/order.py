"""The order of the images: an exact permutation an epoch, computed for single positions without any table."""

from __future__ import annotations

import math

import numpy as np

from ijepa_ds.counter import STREAM_ORDER, fold, uniform_np

_ROUNDS = 8


def sample_indices(numbers: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Tell which image each global sample number is.

    Sample number n belongs to epoch n // num_samples; within an epoch every image comes exactly once.

    Args:
        numbers: int64 [n], global sample numbers; they may lie in several epochs.
        num_samples: Images in the data set.
        seed: The run's seed.

    Returns:
        int64 [n], indices in 0 .. num_samples - 1.
    """
    epochs, positions = np.divmod(np.asarray(numbers, dtype=np.int64), num_samples)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = _permute(positions[chosen], num_samples, fold(seed, int(epoch)))
    return indices


def _permute(positions: np.ndarray, num_samples: int, key: int) -> np.ndarray:
    """Permute 0 .. num_samples - 1 by a permutation of a slightly larger rectangle.

    A value that falls outside is permuted again until it is inside ("cycle walking": still a permutation, see
    Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    columns = math.isqrt(num_samples - 1) + 1
    rows = -(-num_samples // columns)  # rows * columns < num_samples + columns: walks are rare
    values = _mix(positions, rows, columns, key)
    while (outside := values >= num_samples).any():
        values[outside] = _mix(values[outside], rows, columns, key)
    return values


def _mix(values: np.ndarray, rows: int, columns: int, key: int) -> np.ndarray:
    """A Feistel network on (row, column): a round turns one by a random function of the other: invertible."""
    row, column = np.divmod(values, columns)
    for number in range(0, _ROUNDS, 2):
        row = (row + _random(column, number, rows, key)) % rows
        column = (column + _random(row, number + 1, columns, key)) % columns
    return row * columns + column


def _random(values: np.ndarray, number: int, below: int, key: int) -> np.ndarray:
    drawn = uniform_np(key, STREAM_ORDER, values * _ROUNDS + number, 1)[:, 0]
    return (drawn * below).astype(np.int64)
