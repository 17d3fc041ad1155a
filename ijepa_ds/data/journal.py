"""The journal of a scan: what was found is kept in a file as it is found, so that an interrupted scan goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Journal:
    """Rows of chunks of images, by a digest of the names and places of its images, and of tars; threads may share it."""

    def __init__(self, path: Path | None) -> None:
        """Read what an interrupted scan left at `path`; without a path, nothing is kept."""
        self._path = path
        self._places: dict[bytes, tuple[int, int]] = {}  # digest -> byte offset and length of its line
        self._lock = threading.RLock()
        self._file = None
        if path is None:
            return
        try:
            self._file = path.open("a+b")
            self._read()
        except OSError as error:
            logger.warning("%s: %s; if the scan is interrupted, it starts again", path, error.strerror)
            self.close()

    def _read(self) -> None:
        """Index the complete lines; a line that an interruption cut is dropped, and all after it."""
        assert self._file is not None
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                self._places[bytes.fromhex(json.loads(line)[0])] = end, len(line)
            except (ValueError, IndexError, TypeError):
                break
            end += len(line)
        self._file.truncate(end)

    def __len__(self) -> int:
        """Number of chunks and tars that need no second look."""
        return len(self._places)

    def find(self, key: bytes) -> list[Any] | None:
        """The rows of a chunk, or None."""
        with self._lock:
            if self._file is None or key not in self._places:
                return None
            offset, length = self._places[key]
            return json.loads(os.pread(self._file.fileno(), length, offset))[1]

    def add(self, chunks: Iterable[tuple[bytes, Sequence[Any]]]) -> None:
        """Append the rows of chunks; a full disk ends the journal, not the scan."""
        lines = b"".join(json.dumps([key.hex(), rows]).encode() + b"\n" for key, rows in chunks)
        try:
            with self._lock:
                if self._file is not None:
                    self._file.write(lines)
                    self._file.flush()
        except OSError as error:
            logger.warning("%s: %s; if the scan is interrupted, it starts again", self._path, error.strerror)
            self.close()

    def close(self) -> None:
        """Close the file and keep it."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file, self._places = None, {}

    def remove(self) -> None:
        """Delete the file: the scan is complete and its index is saved."""
        self.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def chunk_key(parts: Iterable[object]) -> bytes:
    """A digest of what identifies a chunk: options, containers and names of its images."""
    return hashlib.blake2b(repr(list(parts)).encode("utf-8", "surrogateescape"), digest_size=16).digest()
