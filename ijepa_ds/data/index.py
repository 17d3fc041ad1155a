"""The index of a data set: which images there are, in which order, where they lie, how large, of which class.

One file, read through the page cache, which all processes of a machine share:

    magic, length of the header   16 bytes
    header                        JSON: containers, classes, what is unreadable, sizes of the tables
    entries                       64 bytes an image (ENTRY), in order
    names                         the bytes of all names, one after another

An image that cannot be read keeps its place, with the reason: so all others keep theirs.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np

ENTRY = np.dtype(
    [
        ("name", "<i8"),  # where it begins in the names
        ("name_length", "<i4"),
        ("container", "<i4"),
        ("offset", "<i8"),  # in the container, for members of a tar
        ("num_bytes", "<i8"),
        ("mtime_ns", "<i8"),
        ("width", "<i4"),  # as stored; width and height are 0 where the image is unreadable
        ("height", "<i4"),
        ("label", "<i4"),  # index into classes; -1: none
        ("format", "<i4"),
        ("checksum", "<u8"),  # 0: not taken
    ]
)
MAGIC = b"IJEPAIX1"
_ALIGN = 4096
_HEAD = struct.Struct("<qii")  # the first three fields of ENTRY
_SHOWN = 5  # files in a message


@dataclass(frozen=True)
class Container:
    """What holds images: a folder, or a tar.

    Attributes:
        path: Absolute.
        fingerprint: Of a tar, over its length, first and last bytes; empty for a folder.
    """

    path: str
    fingerprint: str = ""


@dataclass(frozen=True)
class Part:
    """One source of a mix: how many of the images, and its share of the samples (None: as many as it has)."""

    source: str
    count: int
    weight: float | None


class IndexFile:
    """An open index, closed when nobody holds it any more; where its tables begin."""

    def __init__(self, path: Path, entries: int, names: int) -> None:
        """Open it once more, for single reads."""
        self.entries, self.names = entries, names
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        """Close it."""
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageIndex:
    """The images of a source, in the order of their names, unreadable ones included.

    Attributes:
        source: What was scanned.
        entries: ENTRY [n].
        names: uint8 [bytes of all names].
        containers: What the entries' container numbers mean.
        classes: Sorted names of the classes.
        bad: Position -> why that image cannot be read.
        problems: (path, reason) of folders and lines that could not be followed.
        parts: The sources of a mix in order; one for a single source.
        checksum: Digest of names and sizes: where it differs, sample numbers mean other images.
        file: Where the tables are mapped from, for looking up single images: a touch of the map may keep a megabyte around
            it resident, a read of 64 bytes does not.
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
    file: IndexFile | None = None

    def __len__(self) -> int:
        """Return the number of images, unreadable ones included."""
        return len(self.entries)

    @property
    def sizes(self) -> np.ndarray:
        """int32 [n, 2], (width, height) in pixels as stored; 0 where unreadable."""
        (_, first), step = ENTRY.fields["width"][:2], ENTRY.itemsize  # type: ignore[index]
        raw = self.entries.view(np.uint8).reshape(len(self), step)[:, first : first + 8]
        return np.lib.stride_tricks.as_strided(raw.view("<i4"), (len(self), 2), (step, 4), writeable=False)

    @property
    def labels(self) -> np.ndarray:
        """int32 [n], index into `classes`; -1 for images without a class."""
        return self.entries["label"]

    @property
    def paths(self) -> Paths:
        """What messages call the images: paths; `shard.tar:member` for members of a tar."""
        return Paths(self)

    def readable(self) -> np.ndarray:
        """Return the positions of the readable images, int64, in order."""
        return np.delete(np.arange(len(self)), list(self.bad))

    def name(self, index: int) -> bytes:
        """Return the name of an image within its container.

        Raises:
            IndexError: there is no such image.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start, length, _ = self._head(index)
        if self.file is not None:
            return os.pread(self.file.descriptor, length, self.file.names + start)
        return self.names[start : start + length].tobytes()

    def _head(self, index: int) -> tuple[int, int, int]:
        """Where an image's name begins, how long it is, and its container."""
        if self.file is None:
            return self.entries[index].item()[:3]
        place = self.file.entries + index % len(self) * ENTRY.itemsize
        return _HEAD.unpack(os.pread(self.file.descriptor, _HEAD.size, place))

    def rows(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the entries of some images, ENTRY [k]."""
        if self.file is None:
            return self.entries[np.asarray(indices)]
        step, count = ENTRY.itemsize, len(self)
        places = [self.file.entries + index % count * step for index in np.asarray(indices).tolist()]
        return np.frombuffer(b"".join(os.pread(self.file.descriptor, step, place) for place in places), ENTRY)

    def path(self, index: int) -> bytes:
        """Return the file of an image outside a tar, as bytes: names need not be valid text."""
        container = self.containers[self._head(index)[2]]
        return os.path.join(os.fsencode(container.path), self.name(index))

    def shown(self, index: int) -> str:
        """Return what messages call an image."""
        container = self.containers[self._head(index)[2]]
        if container.fingerprint:
            return f"{container.path}:{os.fsdecode(self.name(index))}"
        return os.fsdecode(self.path(index))

    def list_bad(self) -> list[tuple[str, str]]:
        """Return (path, reason) of all that is unreadable, folders first."""
        return [*self.problems, *((self.shown(index), reason) for index, reason in sorted(self.bad.items()))]

    def save(self, path: Path) -> None:
        """Write the index: aside, then renamed. Containers below its own folder are written relative to it."""
        path = path.absolute()
        header = {
            "source": self.source,
            "containers": [asdict(_relative(container, path.parent)) for container in self.containers],
            "classes": self.classes,
            "bad": sorted(self.bad.items()),
            "problems": self.problems,
            "parts": [asdict(part) for part in self.parts],
            "checksum": self.checksum,
            "entries": len(self.entries),
            "names": len(self.names),
        }
        text = json.dumps(header).encode()
        aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(aside, "wb") as file:
                file.write(MAGIC + len(text).to_bytes(8, "little") + text)
                for table in (self.entries, self.names):
                    file.write(bytes(-file.tell() % _ALIGN))
                    np.ascontiguousarray(table).tofile(file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> ImageIndex:
        """Map an index into memory; nothing but its header is read.

        Raises:
            ValueError: not an index, or cut short.
        """
        path = Path(path).absolute()
        with open(path, "rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            head = file.read(16)
            if head[:8] != MAGIC:
                raise ValueError(f"{path} is not an index of this version; make it with `ijepa-ds data index SRC --out {path}`")
            length = int.from_bytes(head[8:], "little")
            text = file.read(length)
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            header = json.loads(text)
            first = _aligned(16 + length)
            second = _aligned(first + header["entries"] * ENTRY.itemsize)
            whole = second + header["names"]
        except (ValueError, KeyError, TypeError):
            whole = num_bytes + 1
        if num_bytes < whole:
            raise ValueError(f"{path} is cut short: make it again with `ijepa-ds data index`")
        return cls(
            source=header["source"],
            entries=np.frombuffer(mapping, ENTRY, header["entries"], first if header["entries"] else 0),
            names=np.frombuffer(mapping, np.uint8, header["names"], second if header["names"] else 0),
            file=IndexFile(path, first, second),
            containers=tuple(_absolute(Container(**container), path.parent) for container in header["containers"]),
            classes=tuple(header["classes"]),
            bad=dict(header["bad"]),
            problems=tuple((name, reason) for name, reason in header["problems"]),
            parts=tuple(Part(**part) for part in header["parts"]),
            checksum=header["checksum"],
        )

    def with_bad(self, bad: Mapping[int, str]) -> ImageIndex:
        """Return this index with more known to be unreadable."""
        return replace(self, bad={**bad, **self.bad})

    def without_bad(self) -> ImageIndex:
        """Return an index of the readable images only: other sample numbers, so another run."""
        kept = self.readable()
        return make(
            source=self.source,
            entries=np.array(self.entries[kept]),
            names=self.names,
            containers=self.containers,
            classes=self.classes,
            bad={},
            problems=(),
            parts=self.parts_of(kept),
        )

    def parts_of(self, kept: np.ndarray) -> tuple[Part, ...]:
        """Return the parts of a mix with the images at some positions only, int64 [m] in order."""
        ends = np.searchsorted(kept, np.cumsum([part.count for part in self.parts]))
        counts = np.diff(ends, prepend=0).tolist()
        return tuple(replace(part, count=count) for part, count in zip(self.parts, counts, strict=True) if count)


class Paths(Sequence[str]):
    """The images' paths as text, made when asked for; bytes that are no text are escaped as Python does."""

    def __init__(self, index: ImageIndex) -> None:
        """Of all images of an index."""
        self._index = index

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._index)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one path, or some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._index.shown(index)


def make(*, entries: np.ndarray, names: np.ndarray, **rest: Any) -> ImageIndex:
    """Make an index of tables in memory; its checksum is taken here."""
    digest, ends = hashlib.blake2b(digest_size=16), np.cumsum(entries["name_length"], dtype="<i8")
    digest.update(ends.tobytes())
    if len(ends) and ends[-1] == len(names) and np.array_equal(entries["name"][1:], ends[:-1]):
        digest.update(memoryview(np.ascontiguousarray(names)))  # type: ignore[arg-type]  # one behind the other, as a scan leaves them
    else:
        for start, length in zip(entries["name"].tolist(), entries["name_length"].tolist(), strict=True):
            digest.update(names[start : start + length].tobytes())
    digest.update(np.stack([entries["width"], entries["height"]], axis=1).astype("<i4").tobytes())
    return ImageIndex(entries=entries, names=names, checksum=digest.hexdigest(), **rest)


def describe(bad: Sequence[tuple[str, str]]) -> str:
    """Write the first of some (path, reason) on one line; repr keeps odd names on it."""
    shown = "; ".join(f"{path!r}: {reason}" for path, reason in bad[:_SHOWN])
    return shown + (f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")


def changes(old: ImageIndex, new: ImageIndex) -> list[tuple[str, str]]:
    """(path, what happened) of the images that two indices of one source do not share."""

    def known(index: ImageIndex) -> dict[str, tuple[int, int]]:
        return dict(zip(index.paths, map(tuple, index.sizes.tolist()), strict=True))

    before, now = known(old), known(new)
    found = [(path, "gone") for path in before if path not in now]
    found += [(path, "new") for path in now if path not in before]
    return found + [
        (path, f"{now[path][0]}x{now[path][1]} pixels now, {size[0]}x{size[1]} before")
        for path, size in before.items()
        if path in now and now[path] != size
    ]


def concatenate(indices: Iterable[tuple[ImageIndex, str, float | None]], source: str) -> ImageIndex:
    """Put several sources behind each other, with their weights; classes are matched by name."""
    given = list(indices)
    classes = tuple(sorted({name for index, _, _ in given for name in index.classes}))
    number = {name: label for label, name in enumerate(classes)}
    tables, first_name, first_container, position = [], 0, 0, 0
    bad: dict[int, str] = {}
    for index, _, _ in given:
        table = np.array(index.entries)
        table["name"] += first_name
        table["container"] += first_container
        renumber = np.array([*(number[name] for name in index.classes), -1], dtype=np.int32)
        table["label"] = renumber[table["label"]]
        bad |= {position + at: reason for at, reason in index.bad.items()}
        tables.append(table)
        first_name, first_container = first_name + len(index.names), first_container + len(index.containers)
        position += len(table)
    return make(
        source=source,
        entries=np.concatenate(tables),
        names=np.concatenate([index.names for index, _, _ in given]),
        containers=tuple(container for index, _, _ in given for container in index.containers),
        classes=classes,
        bad=bad,
        problems=tuple(problem for index, _, _ in given for problem in index.problems),
        parts=tuple(Part(name, len(index), weight) for index, name, weight in given),
    )


def _aligned(offset: int) -> int:
    return offset + -offset % _ALIGN


def _relative(container: Container, folder: Path) -> Container:
    path = Path(container.path)
    return replace(container, path=str(path.relative_to(folder))) if path.is_relative_to(folder) else container


def _absolute(container: Container, folder: Path) -> Container:
    return replace(container, path=os.path.normpath(folder / container.path))
