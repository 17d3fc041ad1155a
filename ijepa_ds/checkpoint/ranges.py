"""Which file of a checkpoint has which elements of which parameter, so that a reader opens only the files that it needs.

The manifest's `ranges` has runs for every key (`master/NAME`). `[file, files, start, numel]` means: `files` files, from
number `file` on, have `numel` elements each, one part after another. The first part begins at element `start` of the flattened
parameter. ZeRO-3 cuts a parameter into equal parts, so its runs do not grow with the number of ranks.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Run(NamedTuple):
    """Adjacent parts of equal length, in files that follow each other."""

    file: int
    files: int
    start: int
    numel: int

    @property
    def end(self) -> int:
        """The element behind the last one."""
        return self.start + self.files * self.numel

    def overlapping(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """(file, its first element) of the parts that have some of the elements `low` to `high`."""
        first = max(0, (low - self.start) // self.numel)
        last = min(self.files, -(-(high - self.start) // self.numel))
        for number in range(first, last):
            yield self.file + number, self.start + number * self.numel


def pack(starts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> bytes:
    """What one file has, compressed: key -> (start, elements)."""
    return zlib.compress(json.dumps({key: (start, tensors[key].numel()) for key, start in starts.items()}).encode())


class Ranges:
    """The table of all files, on rank 0; it is made anew when a rank reports something else than before."""

    def __init__(self) -> None:
        self._packed: list[bytes] = []
        self._table: dict[str, list[list[int]]] | None = None

    def update(self, news: Sequence[bytes | None]) -> None:
        """Take what the ranks report, in rank order; None: the same as before."""
        if all(packed is None for packed in news) and self._table is not None:
            return
        self._packed = [packed if packed is not None else self._packed[rank] for rank, packed in enumerate(news)]
        self._table = None

    def table(self) -> dict[str, list[list[int]]]:
        """The manifest's `ranges`."""
        if self._table is None:
            self._table = {}
            for number, packed in enumerate(self._packed):
                for key, (start, numel) in json.loads(zlib.decompress(packed)).items():
                    _append(self._table.setdefault(key, []), number, start, numel)
        return self._table


def _append(runs: list[list[int]], number: int, start: int, numel: int) -> None:
    if runs:
        file, files, first, each = runs[-1]
        if (number, start, numel) == (file + files, first + files * each, each):
            runs[-1][1] += 1
            return
    runs.append([number, 1, start, numel])


def read(manifest: Mapping[str, Any]) -> dict[str, list[Run]] | None:
    """The table of a manifest; None if it was written without one.

    Raises:
        ValueError, TypeError, AttributeError: it is damaged.
    """
    if "ranges" not in manifest:
        return None
    table = {key: [Run(*map(int, run)) for run in runs] for key, runs in manifest["ranges"].items()}
    for run in (run for runs in table.values() for run in runs):
        if not (0 <= run.file < run.file + run.files <= len(manifest["files"]) and run.start >= 0 and run.numel > 0):
            raise ValueError(f"{list(run)} is no range of its {len(manifest['files'])} files")
    return table
