"""Tar shards of a source with their index: deterministic bytes, resumable, verified after writing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ijepa_ds.data.headers import READ_ERRORS
from ijepa_ds.data.index import ImageIndex, build_index
from ijepa_ds.data.index_file import Container
from ijepa_ds.data.reading import Reader, digest
from ijepa_ds.data.sources import SHARD_INDEX
from ijepa_ds.data.tars import fingerprint
from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)
_PROGRESS = "shards.partial.json"  # digests of the finished shards; deleted at the end
_WINDOW = 64  # prefetched images
_ROWS = 1 << 14  # of the index, read at once
_THREADS = 8
_RECORD = tarfile.RECORDSIZE


class Plan(NamedTuple):
    """Which image goes where: two numbers an image, as headers are made when they are written.

    Attributes:
        positions: int64 [m], the readable images in the source, in order.
        offsets: int64 [m], of each one's bytes in its shard.
        firsts: int64 [k + 1], where each shard begins in `positions`; the last is m.
    """

    positions: np.ndarray
    offsets: np.ndarray
    firsts: np.ndarray

    def members(self, shard: int) -> slice:
        """The images of a shard, as places in `positions`."""
        return slice(int(self.firsts[shard]), int(self.firsts[shard + 1]))


def write_shards(index: ImageIndex, out: Path, size: int, progress: bool = True) -> ImageIndex:
    """Write the readable images of an index into `out`/images-00000.tar ... and `out`/images.index.

    Names, order and classes are those of the source. If it has no unreadable image, a run can resume with the shards.

    Args:
        index: The source.
        out: A folder: new, empty, or left by an interrupted call.
        size: Largest size of a shard in bytes, unless one image is larger.
        progress: Show a progress bar on a terminal.

    Returns:
        The index of the shards, with checksums.

    Raises:
        ValueError: An image is no longer readable, `out` contains other files, or a shard reads back differently.
        OSError: A write fails, for example on a full disk; the next call resumes after the finished shards.
    """
    out.mkdir(parents=True, exist_ok=True)
    if (out / SHARD_INDEX).exists():
        raise UserError(f"{out} holds finished shards ({SHARD_INDEX}); choose another --out, or remove it")
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{out} is being written by another process") from error
        return _write(index, out, size, progress)


def _write(index: ImageIndex, out: Path, size: int, progress: bool) -> ImageIndex:
    planned = plan(index, size)
    done = _progress_of(out, {"source": index.checksum, "bad": sorted(index.bad), "size": size})
    checksums = np.zeros(len(planned.positions), "<u8")
    reader = Reader(index)
    disable = None if progress else True
    with tqdm(total=len(checksums), desc=f"shard {index.source}", unit="image", disable=disable) as bar:
        for number in range(len(planned.firsts) - 1):
            path, members = out / f"images-{number:05d}.tar", planned.members(number)
            positions, offsets = planned.positions[members], planned.offsets[members]
            whole = done["shards"].get(path.name)
            read, sums = _sums(path, index, positions, offsets) if whole and path.exists() else ("", [])
            if not whole or read != whole:
                written, whole = _write_shard(reader, index, path, positions)
                read, sums = _sums(path, index, positions, offsets)
                if (read, sums) != (whole, written):
                    raise UserError(f"{path} reads back differently from what was written: is the disk broken?")
            checksums[members] = sums
            done["shards"][path.name] = whole
            _save(out / _PROGRESS, done)
            bar.update(len(positions))
    made = _index_of(index, out, planned, checksums)
    made.save(out / SHARD_INDEX)
    (out / _PROGRESS).unlink()
    return made


def plan(index: ImageIndex, size: int) -> Plan:
    """Assign the readable images to shards of at most `size` bytes, in order."""
    positions = index.readable()
    offsets, firsts = np.empty(len(positions), np.int64), []
    end = size + 1
    for first in range(0, len(positions), _ROWS):
        chunk = positions[first : first + _ROWS]
        for i, (position, num_bytes) in enumerate(zip(chunk.tolist(), index.rows(chunk)["num_bytes"].tolist(), strict=True)):
            header = len(_header(index.name(position), num_bytes))
            length = header + num_bytes + -num_bytes % tarfile.BLOCKSIZE
            if end + length + 2 * tarfile.BLOCKSIZE > size:
                firsts.append(first + i)
                end = 0
            offsets[first + i] = end + header
            end += length
    return Plan(positions, offsets, np.array([*firsts, len(positions)]))


def _header(name: bytes, num_bytes: int) -> bytes:
    """Return a tar header without time and owner; absolute paths and `..` are removed from the name."""
    parts = [part for part in os.fsdecode(name).split("/") if part not in ("", ".", "..")]
    info = tarfile.TarInfo("/".join(parts))
    info.size, info.mode = num_bytes, 0o644
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _write_shard(reader: Reader, index: ImageIndex, path: Path, positions: np.ndarray) -> tuple[list[int], str]:
    """Write one shard to a temporary file and rename it; return the checksum of each image, and the digest of the file."""
    partial = path.with_name(f".{path.name}.partial")
    checksums, whole = [], hashlib.blake2b(digest_size=16)
    with open(partial, "wb") as file:

        def put(content: bytes) -> None:
            file.write(content)
            whole.update(content)

        for position, content in _contents(reader, positions.tolist()):
            checksums.append(digest(content))
            put(_header(index.name(position), len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
        put(bytes(2 * tarfile.BLOCKSIZE))
        put(bytes(-file.tell() % _RECORD))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return checksums, whole.hexdigest()


def _contents(reader: Reader, positions: list[int]) -> Iterator[tuple[int, bytes]]:
    def read(position: int) -> bytes:
        try:
            return reader.read(position)
        except READ_ERRORS as error:
            raise UserError(
                f"{reader.display_path(position)!r} is no longer readable: {error}; index the source again, or exclude "
                "it with `ijepa-ds data check --fix-index`"
            ) from error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="read") as pool:
        for first in range(0, len(positions), _WINDOW):
            window = positions[first : first + _WINDOW]
            yield from zip(window, pool.map(read, window), strict=True)


def _sums(path: Path, index: ImageIndex, positions: np.ndarray, offsets: np.ndarray) -> tuple[str, list[int]]:
    """Read a shard and return the digest of the file, and the checksum of each of its images."""
    whole, checksums = hashlib.blake2b(digest_size=16), []
    lengths = index.rows(positions)["num_bytes"]
    with open(path, "rb") as file:
        for offset, num_bytes in zip(offsets.tolist(), lengths.tolist(), strict=True):
            before = file.read(offset - file.tell())
            content = file.read(num_bytes)
            checksums.append(digest(content))
            whole.update(before)
            whole.update(content)
        whole.update(file.read())
    return whole.hexdigest(), checksums


def _progress_of(out: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Return the progress of an interrupted call, or start a new one.

    Raises:
        ValueError: The folder contains something else.
    """
    path = out / _PROGRESS
    task = json.loads(json.dumps(task))
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["task"] != task:
            raise UserError(
                f"{out} holds an unfinished set of shards of another source or --size; choose another --out, or remove it"
            )
        return before
    foreign = [name for name in sorted(os.listdir(out)) if not name.startswith(".")]
    if foreign:
        raise UserError(f"{out} is not empty ({foreign[0]}, ...); choose another --out")
    fresh: dict[str, Any] = {"task": task, "shards": {}}
    _save(path, fresh)
    return fresh


def _save(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _index_of(index: ImageIndex, out: Path, planned: Plan, checksums: np.ndarray) -> ImageIndex:
    shards, kept = len(planned.firsts) - 1, planned.positions
    entries = np.array(index.entries) if len(kept) == len(index) else index.entries[kept]
    entries["container"] = np.repeat(np.arange(shards, dtype=np.int32), np.diff(planned.firsts))
    entries["offset"] = planned.offsets
    entries["checksum"] = checksums
    entries["mtime_ns"] = 0
    paths = [out.absolute() / f"images-{number:05d}.tar" for number in range(shards)]
    return build_index(
        source=index.source,
        entries=entries,
        names=index.names,
        containers=tuple(Container(str(path), fingerprint(str(path))) for path in paths),
        classes=index.classes,
        bad={},
        problems=(),
        parts=index.parts_of(kept),
    )
