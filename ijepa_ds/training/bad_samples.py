"""Unreadable images: ranks exchange them, and rank 0 writes them to RUN/bad_samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.samples import check_limits
from ijepa_ds.distributed.exchange import decide
from ijepa_ds.durable import append_lines

FILE = "bad_samples.jsonl"


class BadSamples:
    """The unreadable images that any rank has found; the same on all ranks after `agree`."""

    def __init__(self, cfg: DataConfig, index: ImageIndex, run: Path, rank: int, found: Mapping[int, str]) -> None:
        """Start with those of the index and those of an earlier attempt.

        Args:
            cfg: limits.
            index: the run's images.
            run: run directory.
            rank: this rank.
            found: position -> reason, of an earlier attempt.

        Raises:
            ValueError: they are too many already.
        """
        self._cfg, self._index, self._rank = cfg, index, rank
        self._path = run / FILE
        self.found = dict(found)
        self._exchanged = 0  # of those that this rank's loader has found
        check_limits(cfg, index, {**index.bad, **self.found})
        if rank == 0:
            self._write([{"path": path, "reason": reason, "index": None} for path, reason in index.problems])
            self._write(self._rows({**index.bad, **self.found}))

    def __len__(self) -> int:
        """Return the number of unreadable images, including those of the index."""
        return len(self._index.bad) + len(self.found)

    def rows(self) -> list[tuple[str, str, int]]:
        """Path, reason and position of images found while training; saved in checkpoints."""
        return [(row["path"], row["reason"], row["index"]) for row in self._rows(self.found)]

    def new(self, batches: ImageBatches) -> int:
        """How many unreadable images this rank has found and not exchanged yet."""
        return len(batches.found) - self._exchanged

    def agree(self, batches: ImageBatches) -> None:
        """Exchange new unreadable images; every rank calls it at the same step, if any rank has new ones.

        Raises:
            ValueError: they are too many; with the list, on every rank.
        """
        found = batches.found
        self._exchanged = len(found)
        new = decide({at: why for at, why in found.items() if at not in self.found}, _union)
        self.found |= new
        batches.add_bad(new)
        if self._rank == 0:
            self._write(self._rows(new))
        check_limits(self._cfg, self._index, {**self._index.bad, **self.found})

    def note_before_stopping(self, batches: ImageBatches) -> None:
        """Write those that only this rank has found; called when no further step follows."""
        self._write(self._rows({at: why for at, why in batches.found.items() if at not in self.found}))

    def _rows(self, bad: Mapping[int, str]) -> list[dict[str, Any]]:
        return [{"path": self._index.display_path(at), "reason": why, "index": at} for at, why in sorted(bad.items())]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Append the rows that the file does not have yet."""
        if not rows:
            return
        before: list[str] = []
        with suppress(OSError):  # none yet, or the storage fails: rows are repeated
            before = self._path.read_text(encoding="utf-8").splitlines()
        known = set(before)
        append_lines(self._path, [line for line in map(json.dumps, rows) if line not in known])


def _union(every: list[dict[int, str]]) -> dict[int, str]:
    """Position -> reason of what all ranks found; of several reasons, the lowest rank's."""
    return {at: why for found in reversed(every) for at, why in found.items()}


def found_before(manifest: Mapping[str, Any]) -> dict[int, str]:
    """Position -> reason of the images in a checkpoint's manifest."""
    rows = manifest.get("bad_samples", [])
    return {row[2]: row[1] for row in rows if len(row) == 3}  # rows of 0.1.0 have no position; such images are found again
