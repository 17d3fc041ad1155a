"""The index of an image folder: which images there are, in which order, how large and of which class."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from ijepa_ds.data.headers import read_size
from ijepa_ds.data.paths import EXTENSIONS, PathList, Walker

logger = logging.getLogger(__name__)

_THREADS = 16  # they wait for the file system most of the time
_CHUNK = 64  # files a task
_SHOWN = 5  # bad files in a message


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFolder:
    """The readable images of a folder, ordered by the bytes of their relative paths.

    Attributes:
        source: The folder.
        paths: n absolute paths.
        sizes: int32 [n, 2], (width, height) in pixels as stored.
        labels: int32 [n], index into `classes`; -1 for images that lie directly in the folder.
        classes: Sorted names of the first path components below which there is an image.
        bad: (path, reason) of what has the name of an image and was left out.
    """

    source: str
    paths: PathList
    sizes: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    bad: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        """Return the number of readable images."""
        return len(self.paths)

    @classmethod
    def scan(cls, source: str, max_pixels: int) -> ImageFolder:
        """List a folder (flat, nested or one folder a class) and read every image's size from its header.

        Args:
            source: The folder.
            max_pixels: Larger images are left out.

        Raises:
            ValueError: when the folder does not exist or holds no readable image.
        """
        if not os.path.isdir(source):
            raise ValueError(
                f"data.source: {source!r} is not a folder; give the folder that holds the images"
            )
        walker = Walker(os.fsencode(os.path.abspath(source)))
        paths, sizes, bad = PathList(walker.root), array("i"), []
        for name, outcome in _read_sizes(walker, max_pixels):
            if isinstance(outcome, str):
                bad.append((os.fsdecode(os.path.join(walker.root, name)), outcome))
            else:
                paths.append(name)
                sizes.extend(outcome)
        bad = walker.problems + bad
        if not len(paths):
            raise ValueError(_nothing_readable(source, walker.num_files, bad))
        if bad:
            logger.warning("data.source %r: %d unreadable left out: %s", source, len(bad), describe(bad))
        labels, classes = _labels(paths)
        table = np.array(sizes, dtype=np.int32).reshape(-1, 2)
        return cls(source=source, paths=paths, sizes=table, labels=labels, classes=classes, bad=tuple(bad))

    def checksum(self) -> str:
        """Return a digest of relative paths and sizes: where it differs, sample numbers mean other images."""
        digest = hashlib.blake2b(self.paths.fingerprint(), digest_size=16)
        digest.update(self.sizes.astype("<i4").tobytes())
        return digest.hexdigest()


def describe(bad: Sequence[tuple[str, str]]) -> str:
    """Write the first of some (path, reason) on one line; repr keeps odd names on it."""
    shown = "; ".join(f"{path!r}: {reason}" for path, reason in bad[:_SHOWN])
    return shown + (f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else "")


def _read_sizes(walker: Walker, max_pixels: int) -> Iterator[tuple[bytes, tuple[int, int] | str]]:
    """Yield each image's relative path with its (width, height), or with the reason why it cannot be used."""
    images = walker.images()
    chunks = iter(lambda: list(itertools.islice(images, _CHUNK)), [])
    outcomes = partial(_outcomes, walker.root, max_pixels)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        while window := list(
            itertools.islice(chunks, 4 * _THREADS)
        ):  # Executor.map takes all it is given at once
            for chunk, found in zip(window, pool.map(outcomes, window), strict=True):
                yield from zip(chunk, found, strict=True)


def _outcomes(root: bytes, max_pixels: int, names: list[bytes]) -> list[tuple[int, int] | str]:
    found: list[tuple[int, int] | str] = []
    for name in names:
        try:
            found.append(read_size(os.path.join(root, name), max_pixels))
        except OSError as error:
            found.append(error.strerror or str(error))
        except ValueError as error:
            found.append(str(error))
    return found


def _labels(paths: PathList) -> tuple[np.ndarray, tuple[str, ...]]:
    """Number the first path components by their sorted names, as the field's class folders are numbered."""
    seen: dict[bytes, int] = {}
    raw = np.full(len(paths), -1, dtype=np.int32)
    for i in range(len(paths)):
        first, slash, _ = paths.relative(i).partition(b"/")
        if slash:
            raw[i] = seen.setdefault(first, len(seen))
    classes = sorted(seen)
    rank = np.full(len(seen) + 1, -1, dtype=np.int32)  # the last entry answers for -1
    for label, name in enumerate(classes):
        rank[seen[name]] = label
    return rank[raw], tuple(os.fsdecode(name) for name in classes)


def _nothing_readable(source: str, num_files: int, bad: Sequence[tuple[str, str]]) -> str:
    message = f"data.source: no readable image below {source!r}: {num_files} files seen"
    if bad:
        return f"{message}, {len(bad)} of them with an image's name but unreadable: {describe(bad)}"
    return f"{message}, none with a name ending in {', '.join(EXTENSIONS)}"
