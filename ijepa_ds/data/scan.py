"""Reading the headers of many images at once, into an index."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ijepa_ds.data.headers import FORMATS, inspect
from ijepa_ds.data.index import ENTRY, Container, ImageIndex, Part, make
from ijepa_ds.data.reading import digest, read_range, retry

_THREADS = 16  # they wait for the file system most of the time
_CHUNK = 64  # files a task


class Candidate(NamedTuple):
    """Something with the name of an image: where it lies, and its class, if any."""

    container: int
    name: bytes
    label: bytes | None
    offset: int = 0
    num_bytes: int = -1  # the whole file


class Found(NamedTuple):
    """What a candidate is."""

    width: int = 0
    height: int = 0
    format: int = 0
    num_bytes: int = 0
    mtime_ns: int = 0
    checksum: int = 0
    reason: str = ""  # why it cannot be used


@dataclass(frozen=True)
class ScanOptions:
    """How a source is scanned.

    Attributes:
        max_pixels: Larger images are unreadable.
        checksum: Read every byte and keep a checksum, which each later read is compared with.
        progress: Show a bar, if this is a terminal.
    """

    max_pixels: int = 100_000_000
    checksum: bool = False
    progress: bool = False


def scan(source: str, containers: list[Container], candidates: Iterable[Candidate], options: ScanOptions) -> ImageIndex:
    """Look at all candidates, in parallel, and make the index of them in their order.

    Args:
        source: What the user calls it.
        containers: What the candidates' numbers mean; may grow while the candidates are taken.
        candidates: In the order of the index.
        options: How.
    """
    table, names, bad, classes = bytearray(), bytearray(), {}, dict[bytes, int]()
    position = 0
    with tqdm(desc=f"index {source}", unit="image", disable=None if options.progress else True) as bar:
        for chunk, results in _results(containers, candidates, options):
            rows = np.zeros(len(chunk), ENTRY)
            for i, (candidate, found) in enumerate(zip(chunk, results, strict=True)):
                label = -1 if candidate.label is None else classes.setdefault(candidate.label, len(classes))
                rows[i] = (
                    *(len(names), len(candidate.name), candidate.container, candidate.offset),
                    *(found.num_bytes, found.mtime_ns, found.width, found.height, label, found.format, found.checksum),
                )
                names += candidate.name
                if found.reason:
                    bad[position + i] = found.reason
            table += rows.tobytes()
            position += len(chunk)
            bar.update(len(chunk))
    entries = np.frombuffer(table, ENTRY) if table else np.empty(0, ENTRY)
    ordered = _in_order(classes)
    renumber = np.full(len(classes) + 1, -1, dtype=np.int32)  # the last entry answers for -1
    for label, name in enumerate(ordered):
        renumber[classes[name]] = label
    entries["label"] = renumber[entries["label"]]
    return make(
        source=source,
        entries=entries,
        names=np.frombuffer(names, np.uint8),
        containers=tuple(containers),
        classes=tuple(os.fsdecode(name) for name in ordered),
        bad=bad,
        problems=(),
        parts=(Part(source, len(entries), None),),
    )


def _in_order(classes: Iterable[bytes]) -> list[bytes]:
    """Sorted names, as the field's class folders are numbered; numbers by their value."""
    names = list(classes)
    return sorted(names, key=int) if all(name.isdigit() for name in names) else sorted(names)


def _results(
    containers: list[Container], candidates: Iterable[Candidate], options: ScanOptions
) -> Iterator[tuple[list[Candidate], list[Found]]]:
    iterator = iter(candidates)
    chunks = iter(lambda: list(itertools.islice(iterator, _CHUNK)), [])
    look = partial(_look_at_all, containers, options)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        while window := list(itertools.islice(chunks, 4 * _THREADS)):  # Executor.map takes all it is given at once
            yield from zip(window, pool.map(look, window), strict=True)


def _look_at_all(containers: list[Container], options: ScanOptions, chunk: list[Candidate]) -> list[Found]:
    """The tars of a chunk stay open until its end: its members lie next to each other."""
    opened: dict[int, int] = {}
    with ExitStack() as stack:

        def open_in_chunk(candidate: Candidate) -> tuple[int, bool]:
            container = containers[candidate.container]
            if not container.fingerprint:
                path = os.path.join(os.fsencode(container.path), candidate.name)
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), True  # a pipe must not block
            if candidate.container not in opened:
                opened[candidate.container] = os.open(container.path, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, opened[candidate.container])
            return opened[candidate.container], False

        def look(candidate: Candidate) -> Found:
            descriptor, ours = open_in_chunk(candidate)
            try:
                return _look(descriptor, candidate, options)
            finally:
                if ours:
                    os.close(descriptor)

        return [_reasoned(partial(look, candidate), os.fsdecode(candidate.name)) for candidate in chunk]


def _reasoned(look: partial[Found], name: str) -> Found:
    try:
        return retry(look, repr(name))
    except OSError as error:
        return Found(reason=error.strerror or str(error))
    except ValueError as error:
        return Found(reason=str(error))


def _look(descriptor: int, candidate: Candidate, options: ScanOptions) -> Found:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a file, whatever its name says")
    num_bytes = status.st_size if candidate.num_bytes < 0 else candidate.num_bytes
    width, height, kind = inspect(descriptor, candidate.offset, num_bytes, options.max_pixels)
    taken = digest(read_range(descriptor, candidate.offset, num_bytes)) if options.checksum else 0
    return Found(width, height, FORMATS.index(kind), num_bytes, status.st_mtime_ns, taken)
