"""The order of the images: an exact permutation per epoch, computed for any position without a table.

In a mix with weights, every block of `MIX_BLOCK` samples gives each source its exact share of positions, in permuted
order. Every source has its own epochs, each an exact permutation of its images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ijepa_ds.counter import STREAM_ORDER, STREAM_STAND_IN, fold, uniform_np
from ijepa_ds.errors import UserError

ATTEMPTS = 64  # to draw a readable stand-in
MIX_BLOCK = 1000  # samples: shares are exact to a thousandth
_ROUNDS = 8
_MIX, _SOURCE = 1, 2  # random keys of the orders of a mix

Draw = Callable[[np.ndarray, int, int], np.ndarray]


def sample_indices(numbers: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """Map global sample numbers to images.

    Sample number n belongs to epoch n // num_samples; every image occurs exactly once in an epoch.

    Args:
        numbers: int64 [n], global sample numbers; may belong to several epochs.
        num_samples: Images in the data set.
        seed: The run's seed.

    Returns:
        int64 [n], indices in 0 .. num_samples - 1.
    """
    epochs, positions = np.divmod(np.asarray(numbers, dtype=np.int64), num_samples)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        indices[chosen] = permute(positions[chosen], num_samples, fold(seed, int(epoch)))
    return indices


def mixed_indices(
    numbers: np.ndarray, counts: Sequence[int], weights: Sequence[float], seed: int, draw: Draw | None = None
) -> np.ndarray:
    """Map global sample numbers to images of a mix with weights.

    Args:
        numbers: int64 [n], global sample numbers.
        counts: Images of each source; the index has those of source 0 first.
        weights: Relative shares of the samples.
        seed: The run's seed.
        draw: Maps sample numbers of a source, its number and its seed to positions in it; by default `sample_indices`.

    Returns:
        int64 [n], indices in 0 .. sum(counts) - 1.
    """
    draw = draw or (lambda own, source, key: sample_indices(own, counts[source], key))
    places = mix_places(weights)
    starts = np.concatenate([[0], np.cumsum(places)])
    firsts = np.concatenate([[0], np.cumsum(counts)])
    numbers = np.asarray(numbers, dtype=np.int64)
    permuted = sample_indices(numbers, MIX_BLOCK, fold(seed, _MIX))
    sources = np.searchsorted(starts, permuted, side="right") - 1
    indices = np.empty_like(numbers)
    for source in np.unique(sources).tolist():
        chosen = sources == source
        own = numbers[chosen] // MIX_BLOCK * places[source] + permuted[chosen] - starts[source]
        indices[chosen] = firsts[source] + draw(own, source, fold(seed, _SOURCE, source))
    return indices


def stand_ins(number: int, num_samples: int, seed: int) -> np.ndarray:
    """Images of a source that replace an unreadable one in a sample: the first readable one does.

    Args:
        number: the global sample number.
        num_samples: images of the source.
        seed: the run's seed.

    Returns:
        int64 [ATTEMPTS], positions in the source.
    """
    drawn = uniform_np(seed, STREAM_STAND_IN, np.array([number]), ATTEMPTS)[0]
    return (drawn * num_samples).astype(np.int64)


def mix_places(weights: Sequence[float]) -> np.ndarray:
    """Divide `MIX_BLOCK` positions among sources by weight, with the largest-remainder method.

    Returns:
        int64 [sources], positions of each source, at least 1.

    Raises:
        ValueError: A weight is too small for one position.
    """
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * MIX_BLOCK
    places = np.floor(exact).astype(np.int64)
    order = np.argsort(places - exact, kind="stable")
    places[order[: MIX_BLOCK - places.sum()]] += 1
    if (places == 0).any():
        raise UserError(f"a source has less than 1/{MIX_BLOCK} of the weights {list(weights)}: raise it, or leave it out")
    return places


def permute(positions: np.ndarray, num_samples: int, key: int) -> np.ndarray:
    """Permute 0 .. num_samples - 1, int64 [n] to int64 [n], with a permutation of a slightly larger rectangle.

    A value outside the range is permuted again until it is inside. This "cycle walking" is still a permutation
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    columns = math.isqrt(num_samples - 1) + 1
    rows = -(-num_samples // columns)  # rows * columns < num_samples + columns, so few values are permuted again
    values = _mix(positions, rows, columns, key)
    while (outside := values >= num_samples).any():
        values[outside] = _mix(values[outside], rows, columns, key)
    return values


def _mix(values: np.ndarray, rows: int, columns: int, key: int) -> np.ndarray:
    """Apply a Feistel network to (row, column): each round shifts one by a random function of the other."""
    row, column = np.divmod(values, columns)
    for number in range(0, _ROUNDS, 2):
        row = (row + _random(column, number, rows, key)) % rows
        column = (column + _random(row, number + 1, columns, key)) % columns
    return row * columns + column


def _random(values: np.ndarray, number: int, below: int, key: int) -> np.ndarray:
    drawn = uniform_np(key, STREAM_ORDER, values * _ROUNDS + number, 1)[:, 0]
    return (drawn * below).astype(np.int64)
