"""The order for storage that is slow at random reads: shuffled shards, and a shuffle window over their images.

Each epoch lines up the shards in an exact permutation. Blocks of `window` consecutive images of that line are permuted
each. An epoch is therefore still an exact permutation of the images and a function of seed and epoch, but the samples of a
batch come from a few shards. It needs a table with one row a shard, none of images.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np

from ijepa_ds.counter import fold
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import ENTRY
from ijepa_ds.data.order import permute

LOOSE = 1024  # consecutive loose files that make a shard
_ROWS = 1 << 16  # of an index, read at once
_SHARDS, _SHIFT, _WINDOW = 3, 4, 5  # random keys
_EPOCHS = 2  # tables kept: a batch may straddle two epochs


class ShardOrder:
    """The order of the images of one source, in shards.

    Attributes:
        sizes: int64 [k], images of every shard in the order of the source.
        window: images of a shuffle window.
    """

    def __init__(self, sizes: np.ndarray, window: int) -> None:
        """Keep the sizes, int64 [k]; `window` is at least 1."""
        self.sizes, self.window = sizes, window
        self._starts = np.cumsum(sizes) - sizes
        self._total = int(sizes.sum())
        self._tables: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def indices(self, numbers: np.ndarray, seed: int) -> np.ndarray:
        """Map sample numbers of the source, int64 [n], to positions in it, int64 [n]; see `order.sample_indices`."""
        epochs, positions = np.divmod(np.asarray(numbers, dtype=np.int64), self._total)
        found = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            chosen, key = epochs == epoch, fold(seed, epoch)
            shards, ends = self._line(key)
            place = self._shuffle(positions[chosen], key)
            at = np.searchsorted(ends, place, side="right")
            found[chosen] = self._starts[shards[at]] + place - (ends[at] - self.sizes[shards[at]])
        return found

    def _line(self, key: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in their order, int64 [k], and where each one ends in the line, int64 [k]."""
        table = self._tables.get(key)
        if table is None:
            shards = permute(np.arange(len(self.sizes)), len(self.sizes), fold(key, _SHARDS))
            table = shards, np.cumsum(self.sizes[shards])
            self._tables = dict(list(self._tables.items())[1 - _EPOCHS :]) | {key: table}
        return table

    def _shuffle(self, positions: np.ndarray, key: int) -> np.ndarray:
        """Permute each window; windows begin elsewhere in each epoch."""
        window = min(self.window, self._total)
        shift = fold(key, _SHIFT) % window if window < self._total else 0
        places, windows = np.empty_like(positions), (positions + shift) // window
        for number in np.unique(windows).tolist():
            chosen = windows == number
            first, last = max(0, number * window - shift), min(self._total, (number + 1) * window - shift)
            places[chosen] = first + permute(positions[chosen] - first, last - first, fold(key, _WINDOW, number))
        return places


@lru_cache(maxsize=2)  # a run asks several times
def shards_of(index: ImageIndex, window: int) -> np.ndarray:
    """The images of each shard of an index, int64 [k].

    A shard is a tar, or a group of consecutive loose files. One with more images than the window is cut into equal pieces, so
    that a data set in one tar is shuffled too. It ends where a source of a mix with weights ends: `data shard` may have
    written the images of two sources into one tar.
    """
    sizes = []
    weighted = any(part.weight is not None for part in index.parts)
    parts = np.cumsum([part.count for part in index.parts]).tolist() if weighted else []
    for first, end in pairwise(sorted({0, *_changes(index), *parts, len(index)})):
        tar = index.containers[int(index.rows([first])[0]["container"])].fingerprint
        most = window if tar else min(window, LOOSE)
        pieces = -(-(end - first) // most)
        sizes.append(np.diff(np.arange(pieces + 1) * (end - first) // pieces))
    return np.concatenate(sizes)


def _changes(index: ImageIndex) -> list[int]:
    """Positions of the images, without the first, that are in another container than the image before.

    The table is read in pieces: through the memory map all of it would become resident on every rank.
    """
    found, before = [], None
    for first in range(0, len(index), _ROWS):
        count = min(_ROWS, len(index) - first)
        if index.file is None:
            rows = index.entries[first : first + count]
        else:
            rows = np.frombuffer(index.file.read(count * ENTRY.itemsize, index.file.entries + first * ENTRY.itemsize), ENTRY)
        containers = rows["container"]
        if before is not None and containers[0] != before:
            found.append(first)
        found += (first + 1 + np.flatnonzero(np.diff(containers))).tolist()
        before = containers[-1]
    return found
