"""The index of a data set: order, location, size and class of every image.

An unreadable image keeps its position, with the reason, so the positions of all other images stay the same.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

from ijepa_ds.data.index_file import BY_PILLOW, ENTRY, Container, IndexFile, Part, map_tables, write_tables
from ijepa_ds.data.values import PLAIN, Values

_HEAD = struct.Struct("<qiiq")  # the first four fields of ENTRY
_MAX_LISTED = 5  # files in a message


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageIndex:
    """The images of a source in order, unreadable ones included.

    Attributes:
        source: Path or pattern that was scanned.
        entries: ENTRY [n].
        names: uint8 [bytes of all names].
        containers: Indexed by the entries' container numbers.
        classes: Sorted class names.
        bad: Position -> reason of every unreadable image.
        problems: (path, reason) of folders that could not be listed.
        parts: The sources of a mix in order; one for a single source.
        checksum: Digest of names and sizes. If it changes, sample numbers refer to other images.
        values: How its images become channels; not stored.
        file: The file from which the tables are mapped, or None. Single entries are read from the file: a page fault in
            the map may keep a megabyte around it resident, a read of 64 bytes does not.
    """

    source: str
    entries: np.ndarray
    names: np.ndarray
    containers: tuple[Container, ...]
    classes: tuple[str, ...]
    bad: Mapping[int, str]
    problems: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    checksum: str
    values: Values = PLAIN
    file: IndexFile | None = None

    def __len__(self) -> int:
        """Return the number of images, unreadable ones included."""
        return len(self.entries)

    @property
    def sizes(self) -> np.ndarray:
        """Width and height in pixels as stored, int32 [n, 2]; 0 where unreadable."""
        (_, first), step = ENTRY.fields["width"][:2], ENTRY.itemsize  # type: ignore[index]
        raw = self.entries.view(np.uint8).reshape(len(self), step)[:, first : first + 8]
        return np.lib.stride_tricks.as_strided(raw.view("<i4"), (len(self), 2), (step, 4), writeable=False)

    @property
    def labels(self) -> np.ndarray:
        """Class numbers, int32 [n]: index into `classes`, or -1 for images without a class."""
        return self.entries["label"]

    @property
    def paths(self) -> Paths:
        """Paths of the images as text; `shard.tar:member` for members of a tar."""
        return Paths(self)

    def readable(self) -> np.ndarray:
        """Return the positions of the readable images, int64, in order."""
        return np.delete(np.arange(len(self)), list(self.bad))

    def name(self, index: int) -> bytes:
        """Return the name of an image within its container.

        Raises:
            IndexError: There is no such image.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start, length, *_ = self._location(index)
        if self.file is not None:
            return self.file.read(length, self.file.names + start)
        return self.names[start : start + length].tobytes()

    def _location(self, index: int) -> tuple[int, int, int, int]:
        """Return the offset and length of an image's name, its container number, and its offset there."""
        if self.file is None:
            return self.entries[index].item()[:4]
        offset = self.file.entries + index % len(self) * ENTRY.itemsize
        return _HEAD.unpack(self.file.read(_HEAD.size, offset))

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the entries at k positions, ENTRY [k]."""
        if self.file is None:
            return self.entries[np.asarray(indices)]
        step, count = ENTRY.itemsize, len(self)
        offsets = [self.file.entries + index % count * step for index in np.asarray(indices).tolist()]
        return np.frombuffer(b"".join(self.file.read(step, offset) for offset in offsets), ENTRY)

    def path(self, index: int) -> bytes:
        """Return the path of an image outside a tar, as bytes because file names need not be valid text."""
        container = self.containers[self._location(index)[2]]
        return os.path.join(os.fsencode(container.path), self.name(index))

    def display_path(self, index: int) -> str:
        """Return the path of an image for messages: `shard.tar:member` in a tar, `file.parquet:row 7` in parquet."""
        _, _, number, offset = self._location(index)
        container = self.containers[number]
        if container.column:
            return f"{container.path}:row {container.row + offset}"
        if container.fingerprint:
            return f"{container.path}:{os.fsdecode(self.name(index))}"
        return os.fsdecode(self.path(index))

    def list_bad(self) -> list[tuple[str, str]]:
        """Return (path, reason) of everything unreadable, folders first."""
        return [*self.problems, *((self.display_path(index), reason) for index, reason in sorted(self.bad.items()))]

    def save(self, path: Path) -> None:
        """Write the index to a file; containers below the file's folder are stored relative to it."""
        path = path.absolute()
        header = {
            "source": self.source,
            "containers": [container.relative_to(path.parent).plain() for container in self.containers],
            "classes": self.classes,
            "bad": sorted(self.bad.items()),
            "problems": self.problems,
            "parts": [asdict(part) for part in self.parts],
            "checksum": self.checksum,
        }
        write_tables(path, header, self.entries, self.names)

    @classmethod
    def open(cls, path: Path) -> ImageIndex:
        """Map an index file into memory; only its header is read.

        Raises:
            ValueError: The file is not an index, or is truncated.
        """
        path = Path(path).absolute()
        header, entries, names, file = map_tables(path)
        return cls(
            source=header["source"],
            entries=entries,
            names=names,
            file=file,
            containers=tuple(Container(**container).below(path.parent) for container in header["containers"]),
            classes=tuple(header["classes"]),
            bad=dict(header["bad"]),
            problems=tuple((name, reason) for name, reason in header["problems"]),
            parts=tuple(Part(**part) for part in header["parts"]),
            checksum=header["checksum"],
        )

    def with_bad(self, bad: Mapping[int, str]) -> ImageIndex:
        """Return this index with more images marked as unreadable: position -> reason."""
        return replace(self, bad={**bad, **self.bad})

    def by_pillow(self, positions: Sequence[int]) -> ImageIndex:
        """Return this index with more images that Pillow decodes in every loader."""
        entries = np.array(self.entries)
        entries["format"][list(positions)] |= BY_PILLOW
        return replace(self, entries=entries, file=None)

    def without_bad(self) -> ImageIndex:
        """Return an index of the readable images only; sample numbers then refer to other images."""
        kept = self.readable()
        return build_index(
            source=self.source,
            entries=np.array(self.entries[kept]),
            names=self.names,
            containers=self.containers,
            classes=self.classes,
            bad={},
            problems=(),
            parts=self.parts_of(kept),
            values=self.values,
        )

    def only(self, positions: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> ImageIndex:
        """Return an index of the readable images at some positions, int64 [m] in order, with other classes, int [m]."""
        entries, names = np.array(self.entries[positions]), [self.name(at) for at in positions.tolist()]
        entries["name"] = np.cumsum([0, *map(len, names)])[:-1]
        entries["label"] = labels
        return build_index(
            source=self.source,
            entries=entries,
            names=np.frombuffer(b"".join(names), np.uint8),
            containers=self.containers,
            classes=tuple(classes),
            bad={},
            problems=(),
            parts=self.parts_of(positions),
            values=self.values,
        )

    def parts_of(self, kept: np.ndarray) -> tuple[Part, ...]:
        """Return the parts of the mix that remain if only some positions are kept, int64 [m] in order."""
        ends = np.searchsorted(kept, np.cumsum([part.count for part in self.parts]))
        counts = np.diff(ends, prepend=0).tolist()
        return tuple(replace(part, count=count) for part, count in zip(self.parts, counts, strict=True) if count)


class Paths(Sequence[str]):
    """Paths of an index's images as text, decoded lazily; undecodable bytes become surrogate escapes."""

    def __init__(self, index: ImageIndex) -> None:
        """List all images of `index`."""
        self._index = index

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one path, or a slice of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._index.display_path(index)


def build_index(*, entries: np.ndarray, names: np.ndarray, **rest: Any) -> ImageIndex:
    """Build an index from tables in memory and compute its checksum.

    Args:
        entries: ENTRY [n].
        names: uint8 [bytes of all names].
        **rest: Other attributes of `ImageIndex`.
    """
    digest, ends = hashlib.blake2b(digest_size=16), np.cumsum(entries["name_length"], dtype="<i8")
    digest.update(ends.tobytes())
    if len(ends) and ends[-1] == len(names) and np.array_equal(entries["name"][1:], ends[:-1]):
        digest.update(memoryview(np.ascontiguousarray(names)))  # type: ignore[arg-type]  # contiguous, as a scan writes them
    else:
        for start, length in zip(entries["name"].tolist(), entries["name_length"].tolist(), strict=True):
            digest.update(names[start : start + length].tobytes())
    digest.update(np.stack([entries["width"], entries["height"]], axis=1).astype("<i4").tobytes())
    return ImageIndex(entries=entries, names=names, checksum=digest.hexdigest(), **rest)


def describe(bad: Sequence[tuple[str, str]]) -> str:
    """Return the first few (path, reason) on one line; `repr` escapes line breaks in names."""
    listed = "; ".join(f"{path!r}: {reason}" for path, reason in bad[:_MAX_LISTED])
    return listed + (f"; and {len(bad) - _MAX_LISTED} more" if len(bad) > _MAX_LISTED else "")


def changes(old: ImageIndex, new: ImageIndex) -> list[tuple[str, str]]:
    """Return (path, change) of every image that differs between two indices of one source."""

    def sizes(index: ImageIndex) -> dict[str, tuple[int, int]]:
        return dict(zip(index.paths, map(tuple, index.sizes.tolist()), strict=True))

    before, now = sizes(old), sizes(new)
    found = [(path, "gone") for path in before if path not in now]
    found += [(path, "new") for path in now if path not in before]
    return found + [
        (path, f"{now[path][0]}x{now[path][1]} pixels now, {size[0]}x{size[1]} before")
        for path, size in before.items()
        if path in now and now[path] != size
    ]
