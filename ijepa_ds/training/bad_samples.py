"""Images that cannot be read: found by any rank, known to all, written to RUN/bad_samples.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.samples import check_limits
from ijepa_ds.distributed.exchange import gather_objects, max_over_ranks
from ijepa_ds.durable import append_lines

FILE = "bad_samples.jsonl"


class BadSamples:
    """What all ranks know of unreadable images; rank 0 writes it down."""

    def __init__(self, cfg: DataConfig, index: ImageIndex, run: Path, rank: int, found: Mapping[int, str]) -> None:
        """Start with what the index says and an earlier attempt of the run found.

        Raises:
            ValueError: that is too many already.
        """
        self._cfg, self._index, self._rank = cfg, index, rank
        self._path = run / FILE
        self.found = dict(found)
        check_limits(cfg, index, {**index.bad, **self.found})
        if rank == 0:
            self._write([{"path": path, "reason": reason, "index": None} for path, reason in index.problems])
            self._write(self._rows({**index.bad, **self.found}))

    def __len__(self) -> int:
        """Return how many images are unreadable, those that the index knew included."""
        return len(self._index.bad) + len(self.found)

    def rows(self) -> list[tuple[str, str, int]]:
        """What a checkpoint keeps of the images found while training: path, reason, position."""
        return [(row["path"], row["reason"], row["index"]) for row in self._rows(self.found)]

    def agree(self, batches: ImageBatches) -> None:
        """Put together what the ranks found; every rank calls it at the same step.

        Raises:
            ValueError: too many, with the list; on every rank alike.
        """
        mine = {at: why for at, why in batches.found.items() if at not in self.found}
        if not max_over_ranks(len(mine)):
            return
        new: dict[int, str] = {}
        for found in gather_objects(mine):
            for position, reason in found.items():
                new.setdefault(position, reason)
        self.found |= new
        batches.add_bad(new)
        if self._rank == 0:
            self._write(self._rows(new))
        check_limits(self._cfg, self._index, {**self._index.bad, **self.found})

    def note_before_stopping(self, batches: ImageBatches) -> None:
        """Write down what this rank alone found, when there is no next step to agree at."""
        self._write(self._rows({at: why for at, why in batches.found.items() if at not in self.found}))

    def _rows(self, bad: Mapping[int, str]) -> list[dict[str, Any]]:
        return [{"path": self._index.display_path(at), "reason": why, "index": at} for at, why in sorted(bad.items())]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        """Add the rows that are not in the file yet."""
        if not rows:
            return
        before = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        lines = [line for line in map(json.dumps, rows) if line not in set(before)]
        append_lines(self._path, lines)


def found_before(manifest: Mapping[str, Any]) -> dict[int, str]:
    """Position -> reason of what the run found until a checkpoint."""
    rows = manifest.get("bad_samples", [])
    return {row[2]: row[1] for row in rows if len(row) == 3}  # without a position, as of 0.1.0: found again when met
