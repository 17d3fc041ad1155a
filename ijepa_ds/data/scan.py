"""Parallel scan of image headers into an index."""

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

from ijepa_ds.config import DataConfig
from ijepa_ds.data.headers import inspect
from ijepa_ds.data.image_header import FORMATS
from ijepa_ds.data.index import ImageIndex, build_index
from ijepa_ds.data.index_file import BY_PILLOW, ENTRY, Container, Part
from ijepa_ds.data.reading import digest, read_range, retry

_THREADS = 16  # they mostly wait for the file system
_CHUNK = 64  # files per task


class Candidate(NamedTuple):
    """A file with the name of an image: its location, its class or None, and why it cannot be read, if that is known."""

    container: int
    name: bytes
    label: bytes | None
    offset: int = 0
    num_bytes: int = -1  # -1: the whole file
    reason: str = ""


class Inspection(NamedTuple):
    """The result of inspecting a candidate; sizes in pixels, `format` as in ENTRY."""

    width: int = 0
    height: int = 0
    format: int = 0
    num_bytes: int = 0
    mtime_ns: int = 0
    checksum: int = 0
    reason: str = ""  # why it is unreadable


@dataclass(frozen=True)
class ScanOptions:
    """Options of a scan.

    Attributes:
        max_pixels: Larger images count as unreadable.
        checksum: Read every byte and store a checksum, which every later read verifies.
        progress: Show a progress bar on a terminal.
        tar_end: As `data.tar_end`.
        class_level: As `data.class_level`.
    """

    max_pixels: int = 100_000_000
    checksum: bool = False
    progress: bool = False
    tar_end: str = "error"
    class_level: int | None = None

    @classmethod
    def of(cls, cfg: DataConfig, *, progress: bool = False) -> ScanOptions:
        """Return the options of a run."""
        return cls(max_pixels=cfg.max_pixels, progress=progress, tar_end=cfg.tar_end, class_level=cfg.class_level)


def scan(source: str, containers: list[Container], candidates: Iterable[Candidate], options: ScanOptions) -> ImageIndex:
    """Inspect all candidates in parallel and index them in their order.

    Args:
        source: Name of the source in messages.
        containers: Indexed by the candidates' container numbers; may grow while the candidates are consumed.
        candidates: In the order of the index.
        options: Limits and checksums.
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
    renumber = np.full(len(classes) + 1, -1, dtype=np.int32)  # index -1 is the last entry
    for label, name in enumerate(ordered):
        renumber[classes[name]] = label
    entries["label"] = renumber[entries["label"]]
    return build_index(
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
    """Sort class names; if all are numbers, by value."""
    names = list(classes)
    return sorted(names, key=int) if all(name.isdigit() for name in names) else sorted(names)


def _results(
    containers: list[Container], candidates: Iterable[Candidate], options: ScanOptions
) -> Iterator[tuple[list[Candidate], list[Inspection]]]:
    iterator = iter(candidates)
    chunks = iter(lambda: list(itertools.islice(iterator, _CHUNK)), [])
    inspect_all = partial(_inspect_chunk, containers, options)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        while window := list(itertools.islice(chunks, 4 * _THREADS)):  # Executor.map consumes its whole input at once
            yield from zip(window, pool.map(inspect_all, window), strict=True)


def _inspect_chunk(containers: list[Container], options: ScanOptions, chunk: list[Candidate]) -> list[Inspection]:
    """Inspect a chunk of candidates; its tars stay open until the end, because members are adjacent."""
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

        def open_and_inspect(candidate: Candidate) -> Inspection:
            if candidate.reason:
                return Inspection(reason=candidate.reason)
            descriptor, owned = open_in_chunk(candidate)
            try:
                return _inspect(descriptor, candidate, options)
            finally:
                if owned:
                    os.close(descriptor)

        return [_retry(partial(open_and_inspect, candidate), os.fsdecode(candidate.name)) for candidate in chunk]


def _retry(work: partial[Inspection], name: str) -> Inspection:
    try:
        return retry(work, repr(name))
    except OSError as error:
        return Inspection(reason=error.strerror or str(error))
    except ValueError as error:
        return Inspection(reason=str(error))


def _inspect(descriptor: int, candidate: Candidate, options: ScanOptions) -> Inspection:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a regular file")
    num_bytes = status.st_size if candidate.num_bytes < 0 else candidate.num_bytes
    header = inspect(descriptor, candidate.offset, num_bytes, options.max_pixels)
    kind = FORMATS.index(header.kind) | (BY_PILLOW if header.by_pillow else 0)
    checksum = digest(read_range(descriptor, candidate.offset, num_bytes)) if options.checksum else 0
    return Inspection(header.width, header.height, kind, num_bytes, status.st_mtime_ns, checksum)
