"""What a scan looks at in an image: its header, its end, and with `checksum` every byte."""

from __future__ import annotations

import io
import os
import stat
import threading
from typing import NamedTuple

from ijepa_ds.data.forms import form_of
from ijepa_ds.data.headers import inspect, part_of
from ijepa_ds.data.image_header import KINDS, Header
from ijepa_ds.data.index_file import BY_PILLOW, Container
from ijepa_ds.data.reading import digest, read_range
from ijepa_ds.errors import ContentError, is_fault
from ijepa_ds.storage import Storage

_ROW_GROUPS = threading.Semaphore(4)  # in memory at once: they may have hundreds of megabytes


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


def inspect_chunk(
    containers: list[Container],
    max_pixels: int,
    checksum: bool,
    layout: str | None,
    storage: Storage,
    chunk: list[Candidate],
) -> list[Inspection]:
    """Inspect a chunk of candidates; its tars stay open until the end, because members are adjacent."""
    if containers[chunk[0].container].column:
        return _inspect_rows(containers[chunk[0].container], max_pixels, checksum, layout, storage, chunk)
    opened: dict[int, int] = {}

    def close(container: int) -> None:
        if container in opened:
            os.close(opened.pop(container))

    def descriptor_of(candidate: Candidate) -> int:
        container = containers[candidate.container]
        if not container.fingerprint:
            path = os.path.join(os.fsencode(container.path), candidate.name)
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
        if candidate.container not in opened:
            opened[candidate.container] = os.open(container.path, os.O_RDONLY | os.O_CLOEXEC)
        return opened[candidate.container]

    def open_and_inspect(candidate: Candidate) -> Inspection:
        if candidate.reason:
            return Inspection(reason=candidate.reason)
        descriptor = descriptor_of(candidate)
        try:
            return _inspect(descriptor, candidate, max_pixels, checksum, layout)
        finally:
            if not containers[candidate.container].fingerprint:
                os.close(descriptor)

    def attempt(candidate: Candidate) -> Inspection:
        in_tar = bool(containers[candidate.container].fingerprint)
        try:
            return storage.call(
                lambda: open_and_inspect(candidate),
                repr(os.fsdecode(candidate.name)),
                fault=lambda error: in_tar or is_fault(error),
                reopen=lambda: close(candidate.container),
            )
        except OSError as error:
            return Inspection(reason=error.strerror or str(error))
        except ContentError as error:
            return Inspection(reason=str(error))

    try:
        return [attempt(candidate) for candidate in chunk]
    finally:
        for container in list(opened):
            close(container)


def _inspect(descriptor: int, candidate: Candidate, max_pixels: int, checksum: bool, layout: str | None) -> Inspection:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ContentError("not a regular file")
    num_bytes = status.st_size if candidate.num_bytes < 0 else candidate.num_bytes
    header = inspect(part_of(descriptor, candidate.offset, num_bytes), num_bytes, max_pixels, layout)
    found = digest(read_range(descriptor, candidate.offset, num_bytes)) if checksum else 0
    return Inspection(header.width, header.height, _kind(header), num_bytes, status.st_mtime_ns, found)


def _kind(header: Header) -> int:
    return KINDS.index(header.kind) | (BY_PILLOW if header.by_pillow else 0) | form_of(header.channels, header.depth)


def _inspect_rows(
    place: Container, max_pixels: int, checksum: bool, layout: str | None, storage: Storage, chunk: list[Candidate]
) -> list[Inspection]:
    """Inspect the rows of a row group, which is read once."""
    from ijepa_ds.data.row_groups import Rows, open_parquet  # late: pyarrow takes half a second

    def attempt(rows: Rows, candidate: Candidate) -> Inspection:
        try:
            content = rows.read(candidate.offset)
            header = inspect(io.BytesIO(content), len(content), max_pixels, layout)
        except ContentError as error:
            return Inspection(reason=str(error))
        return Inspection(header.width, header.height, _kind(header), len(content), 0, digest(content) if checksum else 0)

    where = f"{place.path!r}, row group {place.group}"
    with _ROW_GROUPS:
        try:
            rows = storage.call(lambda: Rows(open_parquet(place.path), place), where, fault=lambda _: True)
        except ContentError as error:
            return [Inspection(reason=f"row group {place.group} is damaged: {error}")] * len(chunk)
        return [attempt(rows, candidate) for candidate in chunk]
