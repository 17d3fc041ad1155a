"""Parallel scan of image headers into an index."""

from __future__ import annotations

import itertools
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex, build_index
from ijepa_ds.data.index_file import ENTRY, Container, Part
from ijepa_ds.data.inspecting import Candidate, Inspection, inspect_chunk
from ijepa_ds.data.journal import Journal, chunk_key
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.storage import TIMEOUT, Storage
from ijepa_ds.terminal import Bar

logger = logging.getLogger(__name__)
_THREADS = 16  # they mostly wait for the file system
_CHUNK = 64  # files per task
_CUT = 8  # one folder of this many begins a new task


@dataclass(frozen=True)
class ScanOptions:
    """Options of a scan.

    Attributes:
        max_pixels: Larger images count as unreadable.
        checksum: Read every byte and store a checksum, which every later read verifies.
        progress: Show a progress bar on a terminal.
        tar_end: As `data.tar_end`.
        class_level: As `data.class_level`.
        image_column: As `data.image_column`.
        label_column: As `data.label_column`.
        storage_timeout: Seconds for which a read is repeated while the storage fails.
        values: How files become channels.
        one_form: Images of another form than `values` reads are unreadable.
        beat: Called whenever the scan gets on, and while it waits for storage.
        journal: File in which an interrupted scan leaves what it has found; the next scan goes on from it.
        share: (rank, ranks): of an index that all ranks open, each checks a share of the files.
    """

    max_pixels: int = 100_000_000
    checksum: bool = False
    progress: bool = False
    tar_end: str = "error"
    class_level: int | None = None
    image_column: str = ""
    label_column: str = ""
    storage_timeout: float = TIMEOUT
    values: Values = PLAIN
    one_form: bool = True
    beat: Callable[[], None] = lambda: None
    journal: Path | None = None
    share: tuple[int, int] = (0, 1)

    @classmethod
    def of(
        cls, cfg: DataConfig, *, progress: bool = False, beat: Callable[[], None] = lambda: None, journal: Path | None = None
    ) -> ScanOptions:
        """Return the options of a run."""
        return cls(
            max_pixels=cfg.max_pixels,
            progress=progress,
            tar_end=cfg.tar_end,
            class_level=cfg.class_level,
            image_column=cfg.image_column,
            label_column=cfg.label_column,
            storage_timeout=cfg.storage_timeout,
            values=Values.of(cfg),
            beat=beat,
            journal=journal,
        )

    def storage(self) -> Storage:
        """Calls that are repeated while the storage fails."""
        return Storage(self.storage_timeout, self.beat)


def scan(
    source: str,
    containers: list[Container],
    candidates: Iterable[Candidate],
    options: ScanOptions,
    share: Callable[[], float] = lambda: 0.0,
    journal: Journal | None = None,
) -> ImageIndex:
    """Inspect all candidates in parallel and index them in their order.

    Args:
        source: Name of the source in messages.
        containers: Indexed by the candidates' container numbers; may grow while the candidates are consumed.
        candidates: In the order of the index.
        options: Limits and checksums.
        share: The share of the source that `candidates` has come to, 0 to 1; 0 if it is not known.
        journal: That of `options`, if `candidates` uses it too; it is closed.
    """
    table, names, bad, classes = bytearray(), bytearray(), {}, dict[bytes, int]()
    position = 0
    journal = Journal(options.journal) if journal is None else journal
    progress = Bar(f"index {source}", 0, "images", show=options.progress, share=share)
    again = 0
    if len(journal):
        logger.info("index %s: an interrupted scan goes on (%s)", source, options.journal)
    with closing(progress), closing(journal):
        for chunk, results, known in _results(containers, candidates, options, journal):
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
            options.beat()
            if known:
                again += len(chunk)
                progress.note = f"{again:,} of them by an earlier scan"
            progress.update(len(chunk))
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
    containers: list[Container], candidates: Iterable[Candidate], options: ScanOptions, journal: Journal
) -> Iterator[tuple[list[Candidate], list[Inspection], bool]]:
    """Chunks of candidates with what was found, and whether an earlier scan had found it."""
    chunks = _chunks(containers, candidates)
    layout = options.values.layout
    inspect_all = partial(inspect_chunk, containers, options.max_pixels, options.checksum, layout, options.storage())
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        while window := list(itertools.islice(chunks, 4 * _THREADS)):  # Executor.map consumes its whole input at once
            keys = [_key(containers, options, chunk) for chunk in window]
            rows = [journal.find(key) for key in keys]
            fresh = pool.map(inspect_all, [chunk for chunk, known in zip(window, rows, strict=True) if known is None])
            found = [[Inspection(*row) for row in known] if known is not None else next(fresh) for known in rows]
            journal.add(
                (key, made) for key, made, known in zip(keys, found, rows, strict=True) if known is None and _all_good(made)
            )
            yield from zip(window, found, (known is not None for known in rows), strict=True)


def _chunks(containers: list[Container], candidates: Iterable[Candidate]) -> Iterator[list[Candidate]]:
    """Chunks of at most `_CHUNK`, cut at tars and at some folders, chosen by their names; row groups are not cut.

    A folder that changes between two scans therefore changes the chunks of a few folders after it, not of all.
    """
    chunk: list[Candidate] = []
    place: tuple[int, bytes] = (-1, b"")
    for candidate in candidates:
        now = (candidate.container, os.path.dirname(candidate.name))
        cut = now[0] != place[0] or (now != place and zlib.crc32(now[1]) % _CUT == 0)
        if chunk and (cut or len(chunk) >= _CHUNK and not containers[candidate.container].column):
            yield chunk
            chunk = []
        place = now
        chunk.append(candidate)
    if chunk:
        yield chunk


def _all_good(found: Iterable[Inspection]) -> bool:
    """Whether every image is readable; others are looked at again after an interruption, as somebody may repair them."""
    return not any(one.reason for one in found)


def _key(containers: list[Container], options: ScanOptions, chunk: list[Candidate]) -> bytes:
    place = containers[chunk[0].container]
    names = [(candidate.name, candidate.offset, candidate.num_bytes) for candidate in chunk]
    return chunk_key([options.max_pixels, options.checksum, options.values.layout, *place.plain().values(), names])
