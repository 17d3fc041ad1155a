"""Many paths in little memory, and the walk that finds them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class PathList(Sequence[str]):
    """Paths below one folder in one block of bytes: tens of bytes each, where a str takes over a hundred."""

    def __init__(self, root: bytes, relative: Iterable[bytes] = ()) -> None:
        """Start with paths relative to `root`; `append` adds more."""
        self._root, self._blob, self._ends = root, bytearray(), array("q")
        for path in relative:
            self.append(path)

    def append(self, relative: bytes) -> None:
        """Add a path relative to the folder."""
        self._blob += relative
        self._ends.append(len(self._blob))

    def __len__(self) -> int:
        """Return the number of paths."""
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return absolute paths; bytes that are no text are escaped as Python does for file names."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return os.fsdecode(self.raw(index))

    def relative(self, index: int) -> bytes:
        """Return the path below the folder, as bytes."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        index %= len(self)
        return bytes(self._blob[self._ends[index - 1] if index else 0 : self._ends[index]])

    def raw(self, index: int) -> bytes:
        """Return the absolute path as bytes, which is what the file system and DALI take."""
        return os.path.join(self._root, self.relative(index))

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the relative paths differ, for a digest."""
        return np.asarray(self._ends, dtype="<i8").tobytes() + self._blob


class Walker:
    """A walk through a folder in the order of the bytes of the relative paths.

    Links are followed, except back to a folder above. Names that begin with a dot are passed over.

    Attributes:
        num_files: Files seen so far, of any kind.
        problems: (path, reason) of the folders that could not be listed.
    """

    def __init__(self, root: bytes) -> None:
        """Prepare the walk below `root`, an absolute path."""
        self.root = root
        self.num_files = 0
        self.problems: list[tuple[str, str]] = []

    def images(self) -> Iterator[bytes]:
        """Yield the relative path of every file with the name of an image."""
        return self._below(b"", frozenset())

    def _below(self, prefix: bytes, above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
        folder = os.path.join(self.root, prefix)
        try:
            status = os.stat(folder)
            identity = (status.st_dev, status.st_ino)
            if identity in above:  # a link back up
                return
            with os.scandir(folder) as entries:
                # A folder sorts as "name/", so that whole paths come in order ("a-b/1" before "a/1").
                names = sorted(
                    e.name + b"/" if _is_folder(e) else e.name for e in entries if e.name[:1] != b"."
                )
        except OSError as error:
            self.problems.append((os.fsdecode(folder), f"folder cannot be listed: {error.strerror}"))
            return
        for name in names:
            if name.endswith(b"/"):
                yield from self._below(prefix + name, above | {identity})
            else:
                self.num_files += 1
                if os.fsdecode(name).lower().endswith(EXTENSIONS):
                    yield prefix + name


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
