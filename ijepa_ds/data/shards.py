"""Tar or parquet shards of a source with their index: deterministic bytes, resumable, verified after writing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ijepa_ds.data.image_header import KINDS
from ijepa_ds.data.index import ImageIndex, build_index
from ijepa_ds.data.index_file import KIND, Container
from ijepa_ds.data.reading import Reader, digest
from ijepa_ds.data.shard_plan import Plan, contents
from ijepa_ds.data.sources import SHARD_INDEX
from ijepa_ds.data.tars import fingerprint
from ijepa_ds.data.walk import is_image
from ijepa_ds.errors import ContentError, UserError
from ijepa_ds.terminal import Bar

logger = logging.getLogger(__name__)
_PROGRESS = "shards.partial.json"  # digests of the finished shards; deleted at the end
_ROWS = 1 << 14  # of the index, read at once
_RECORD = tarfile.RECORDSIZE


_ENDINGS = {
    **{"JPEG": b".jpg", "PNG": b".png", "WEBP": b".webp", "BMP": b".bmp"},
    **{"TIFF": b".tif", "NPY": b".npy", "DICOM": b".dcm"},
}
ROWS = 100  # of a row group: Hugging Face's number for images


def write_shards(
    index: ImageIndex, out: Path, size: int, progress: bool = True, *, to: str = "tar", rows: int = ROWS
) -> ImageIndex:
    """Write the readable images of an index into `out`/images-00000.tar (or .parquet) ... and `out`/images.index.

    Names, order and classes are those of the source. If it has no unreadable image, a run can resume with the shards.

    Args:
        index: The source.
        out: A folder: new, empty, or left by an interrupted call.
        size: Largest size of a shard in bytes, unless one image is larger.
        progress: Show a progress bar on a terminal.
        to: `tar` or `parquet`.
        rows: Most rows of a row group of parquet.

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
        return _write(index, out, size, progress, Tars() if to == "tar" else Parquet(rows))


class Tars:
    """Shards that are tars."""

    ending = ".tar"
    task: Mapping[str, object] = {}

    def plan(self, index: ImageIndex, size: int) -> Plan:
        """Assign images to shards."""
        return plan(index, size)

    def write(self, reader: Reader, index: ImageIndex, path: Path, positions: np.ndarray) -> tuple[list[int], str]:
        """Write a shard; return the checksum of each image, and the digest of the file."""
        return _write_shard(reader, index, path, positions)

    def sums(self, path: Path, index: ImageIndex, positions: np.ndarray, offsets: np.ndarray) -> tuple[str, list[int]]:
        """Read a shard; return the digest of the file, and the checksum of each image."""
        return _sums(path, index, positions, offsets)

    def containers(self, planned: Plan, paths: list[Path]) -> list[Container]:
        """The containers of the images, by number."""
        return [Container(str(path), fingerprint(str(path))) for path in paths]


class Parquet(Tars):
    """Shards that are parquet files with row groups of `rows` rows."""

    ending = ".parquet"

    def __init__(self, rows: int) -> None:
        from ijepa_ds.data import parquet_shards  # late: pyarrow takes half a second

        self._rows, self._files = rows, parquet_shards
        self.task = {"to": "parquet", "rows": rows}

    def plan(self, index: ImageIndex, size: int) -> Plan:
        """Assign images to files and row groups."""
        return self._files.plan(index, size, self._rows)

    def write(self, reader: Reader, index: ImageIndex, path: Path, positions: np.ndarray) -> tuple[list[int], str]:
        """Write a file; return the checksum of each image, and the digest of the file."""
        return self._files.write(reader, index, path, positions, self._rows)

    def sums(self, path: Path, index: ImageIndex, positions: np.ndarray, offsets: np.ndarray) -> tuple[str, list[int]]:
        """Read a file; return its digest, and the checksum of each image; none if it cannot be read."""
        try:
            return self._files.sums(path)
        except ContentError:
            return "", []

    def containers(self, planned: Plan, paths: list[Path]) -> list[Container]:
        """The row groups of all files, by number."""
        return self._files.containers_of(planned, paths)


def _write(index: ImageIndex, out: Path, size: int, progress: bool, kind: Tars) -> ImageIndex:
    planned = kind.plan(index, size)
    done = _progress_of(out, {"source": index.checksum, "bad": sorted(index.bad), "size": size, **kind.task})
    checksums = np.zeros(len(planned.positions), "<u8")
    reader = Reader(index)
    with Bar(f"shard {index.source}", len(checksums), "images", show=progress) as bar:
        for number in range(len(planned.firsts) - 1):
            path, members = out / f"images-{number:05d}{kind.ending}", planned.members(number)
            positions, offsets = planned.positions[members], planned.offsets[members]
            whole = done["shards"].get(path.name)
            read, sums = kind.sums(path, index, positions, offsets) if whole and path.exists() else ("", [])
            if not whole or read != whole:
                written, whole = kind.write(reader, index, path, positions)
                read, sums = kind.sums(path, index, positions, offsets)
                if (read, sums) != (whole, written):
                    raise UserError(f"{path} reads back differently from what was written: is the disk broken?")
            checksums[members] = sums
            done["shards"][path.name] = whole
            _save(out / _PROGRESS, done)
            bar.update(len(positions))
    made = _index_of(index, out, planned, checksums, kind)
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
        rows = index.rows(chunk)
        for i, (position, num_bytes) in enumerate(zip(chunk.tolist(), rows["num_bytes"].tolist(), strict=True)):
            header = len(_header(member_name(index.name(position), int(rows["format"][i])), num_bytes))
            length = header + num_bytes + -num_bytes % tarfile.BLOCKSIZE
            if end + length + 2 * tarfile.BLOCKSIZE > size:
                firsts.append(first + i)
                end = 0
            offsets[first + i] = end + header
            end += length
    ends = np.array([*firsts, len(positions)])
    return Plan(positions, np.repeat(np.arange(len(firsts), dtype=np.int32), np.diff(ends)), offsets, ends)


def member_name(name: bytes, form: int) -> bytes:
    """Return an image's name in a tar, which needs an image's ending; rows of parquet may have none. `form`: as in ENTRY."""
    return name if is_image(name, arrays=True) else name + _ENDINGS[KINDS[form & KIND]]


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

        for position, content in contents(reader, positions.tolist()):
            checksums.append(digest(content))
            name = member_name(index.name(position), int(index.rows([position])["format"][0]))
            put(_header(name, len(content)) + content + bytes(-len(content) % tarfile.BLOCKSIZE))
        put(bytes(2 * tarfile.BLOCKSIZE))
        put(bytes(-file.tell() % _RECORD))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return checksums, whole.hexdigest()


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
                f"{out} holds an unfinished set of shards of another source, --size, --to or --rows; choose another --out, or "
                "remove it"
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


def _index_of(index: ImageIndex, out: Path, planned: Plan, checksums: np.ndarray, kind: Tars) -> ImageIndex:
    shards, kept = len(planned.firsts) - 1, planned.positions
    entries = np.array(index.entries) if len(kept) == len(index) else index.entries[kept]
    entries["container"] = planned.containers
    entries["offset"] = planned.offsets
    entries["checksum"] = checksums
    entries["mtime_ns"] = 0
    paths = [out.absolute() / f"images-{number:05d}{kind.ending}" for number in range(shards)]
    return build_index(
        source=index.source,
        entries=entries,
        names=index.names,
        containers=tuple(kind.containers(planned, paths)),
        classes=index.classes,
        bad={},
        problems=(),
        parts=index.parts_of(kept),
    )
