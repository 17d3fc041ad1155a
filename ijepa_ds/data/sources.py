"""The kinds of `data.source`: a folder, a list, tar shards, an index, or a mix of them."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from ijepa_ds.data.classes import class_of, class_text, sidecar_of
from ijepa_ds.data.forms import with_one_form
from ijepa_ds.data.index import ImageIndex, describe
from ijepa_ds.data.index_file import MAGIC, Container
from ijepa_ds.data.lists import ENDINGS as LIST_ENDINGS
from ijepa_ds.data.lists import scan_list
from ijepa_ds.data.mix import concatenate, read_mix
from ijepa_ds.data.scan import Candidate, ScanOptions, scan
from ijepa_ds.data.tars import check_uncompressed, expand, fingerprint, scan_tars
from ijepa_ds.data.walk import COMPRESSED_TARS, EXTENSIONS, PARQUET, Walker, describe_others
from ijepa_ds.errors import UserError, is_fault
from ijepa_ds.storage import Storage

logger = logging.getLogger(__name__)
T = TypeVar("T")

SHARD_INDEX = "images.index"  # beside shards written by `ijepa-ds data shard`
_MIXES = (".yaml", ".yml")
_EXPECTED = (
    "expected a folder of images or of .tar shards, a list (.txt, .csv, .tsv), a .tar (or a pattern of them, such as "
    "'shards/{000..127}.tar' or 'shards/*.tar'), .parquet files likewise, an index made by `ijepa-ds data "
    "index`, or a mix (.yaml)"
)
_PROBES = 64  # files of an index that are checked when it is opened
_THREADS = 16
_CLASS_READ = 4096  # bytes of a `.cls` file, more than a class may have


def open_source(source: str, options: ScanOptions | None = None) -> ImageIndex:
    """Return the index of a source: scan the source, or map its index file.

    Args:
        source: See docs/data.md.
        options: How to scan.

    Raises:
        UserError: The source does not exist, has no readable image, has a folder that cannot be listed, or changed since its
            index was made.
        StorageError: The storage failed for longer than `options.storage_timeout`.
    """
    options = options or ScanOptions()
    try:
        index = options.storage().call(lambda: _open(os.path.expanduser(source), source, options), repr(source))
        index = replace(index, values=options.values)
    except OSError as error:
        raise UserError(f"data.source: {source!r} cannot be read: {error}") from error
    if options.one_form:
        index = with_one_form(index, options.values, source)
    if len(index) == len(index.bad):
        bad = index.list_bad()
        raise UserError(
            f"data.source: no readable image in {source!r}: "
            + (f"{len(bad)} image files are unreadable: {describe(bad)}" if bad else "it is empty")
        )
    bad = index.list_bad()
    if bad:
        logger.warning("data.source %r: %d unreadable images are replaced by others: %s", source, len(bad), describe(bad))
    return index


def is_index(source: str) -> bool:
    """Return whether a source is an index file, which needs no scan."""
    path = os.path.expanduser(source)
    return stat.S_ISREG(_mode(path)) and _starts_with(path, MAGIC)


def _mode(path: str) -> int:
    """The type of a path, as `os.stat` returns it; 0 if there is none.

    `os.path.exists` and its like answer False also when the storage fails.
    """
    try:
        return os.stat(path).st_mode
    except OSError as error:
        if is_fault(error):
            raise
        return 0


def _open(path: str, source: str, options: ScanOptions) -> ImageIndex:
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        beside = os.path.join(path, SHARD_INDEX)
        return _made_index(beside, source, options) if is_index(beside) else _folder(path, source, options)
    if stat.S_ISREG(mode):
        if _starts_with(path, MAGIC):
            return _made_index(path, source, options)
        ending = os.path.splitext(path)[1].lower()
        if ending in LIST_ENDINGS:
            return scan_list(path, source, options)
        if ending in _MIXES:
            parts = [(open_source(part, options), part, weight) for part, weight in read_mix(path, source)]
            return concatenate(parts, source)
        check_uncompressed(path)
        if ending == ".tar":
            return scan_tars([path], source, options)
        if ending == PARQUET:
            return _parquet([path], source, options)
    elif matches := expand(path):
        endings = {os.path.splitext(match)[1].lower() for match in matches}
        if endings == {PARQUET}:
            return _parquet(matches, source, options)
        if PARQUET in endings:
            raise UserError(f"data.source: {source!r} matches {', '.join(sorted(endings))} files: list them in a mix (.yaml)")
        return scan_tars(matches, source, options)
    what = "is not a source of images" if mode else "does not exist"
    raise UserError(f"data.source: {source!r} {what}: {_EXPECTED}")


def _parquet(paths: list[str], source: str, options: ScanOptions) -> ImageIndex:
    from ijepa_ds.data.parquet import scan_parquet  # late: pyarrow takes half a second

    return scan_parquet(paths, source, options)


def _made_index(path: str, source: str, options: ScanOptions) -> ImageIndex:
    for name in ("class_level", "image_column", "label_column"):
        if getattr(options, name) not in (None, ""):
            raise UserError(
                f"data.source: {source!r} is read through the index {path}, whose images and classes are fixed: leave "
                f"data.{name} (--{name.replace('_', '-')}) out, and give it to `ijepa-ds data index` when the index is made"
            )
    return open_index(Path(path), source, options.share)


def _starts_with(path: str, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def open_index(path: Path, source: str, share: tuple[int, int] = (0, 1)) -> ImageIndex:
    """Map an index file and check that its images are unchanged.

    The check compares the fingerprint of every tar and the sizes of a sample of the files; every later read compares
    its own file. Of several ranks each checks a share, and at least one tar and one file, so that a host without the mount
    is found.

    Args:
        path: The index file.
        source: Its name in messages.
        share: (rank, ranks).

    Raises:
        ValueError: Names the files that changed.
    """
    index = replace(ImageIndex.open(path), source=source)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        packed = {container.path: container for container in index.containers if container.fingerprint}
        tars = _share(list(packed.values()), share)
        seen = pool.map(_fingerprint_or_reason, [container.path for container in tars])
        changed = [(tar.path, now) for tar, now in zip(tars, seen, strict=True) if now != tar.fingerprint]
        changed = [(name, "other content" if len(now) == 32 else now) for name, now in changed]
        probes = _share(np.unique(np.linspace(0, len(index) - 1, _PROBES).astype(int)).tolist(), share)
        found = pool.map(lambda position: _change(index, position), probes)
        changed += [(index.display_path(position), reason) for position, reason in zip(probes, found, strict=True) if reason]
    if changed:
        raise UserError(
            f"data.source: {source!r} changed since its index {path} was made: {describe(changed)}; restore it, or index it "
            "again with `ijepa-ds data index`"
        )
    return index


def _share(items: list[T], share: tuple[int, int]) -> list[T]:
    """Every `ranks`-th item from the `rank`-th on; one if there are fewer items than ranks."""
    rank, ranks = share
    return items[rank::ranks] or [items[rank % len(items)]] if items else []


def _change(index: ImageIndex, position: int) -> str:
    """Return how a file changed since it was indexed; empty if its size is the same."""
    entry = index.entries[position]
    if position in index.bad or index.containers[int(entry["container"])].fingerprint:
        return ""
    try:
        now = os.stat(index.path(position)).st_size
    except OSError as error:
        if is_fault(error):
            raise
        return error.strerror or str(error)
    return "" if now == entry["num_bytes"] else f"{now} bytes, but {entry['num_bytes']} when it was indexed"


def _folder(path: str, source: str, options: ScanOptions) -> ImageIndex:
    storage = options.storage()
    walker = Walker(os.fsencode(os.path.abspath(path)), storage, options.beat, bool(options.values.layout))

    def candidates() -> Iterator[Candidate]:
        for name in walker.images():
            beside = sidecar_of(name, walker.sidecars)
            yield Candidate(
                0, name, _read_class(walker.root, beside, storage) if beside else class_of(name, options.class_level)
            )

    index = scan(source, [Container(os.fsdecode(walker.root))], candidates(), options, walker.share)
    if walker.problems:
        raise UserError(
            f"data.source: {len(walker.problems)} folders below {source!r} cannot be listed, so their images would be missing: "
            f"{describe(walker.problems)}; make them readable, or move them away (names that begin with a dot are skipped)"
        )
    if not len(index) and walker.tars:
        if shards := [name for name in walker.packed if name.lower().endswith(COMPRESSED_TARS)]:
            check_uncompressed(os.fsdecode(os.path.join(walker.root, shards[0])))  # its images would be missing
        if walker.others:
            logger.warning("data.source %r: %s", source, describe_others(walker.others))
        return scan_tars([os.fsdecode(os.path.join(walker.root, name)) for name in walker.tars], source, options)
    if walker.tars:
        logger.warning(
            "data.source %r: %d .tar files beside the images are ignored; to use them, set data.source to '%s'",
            *(source, len(walker.tars), os.path.join(source, os.path.dirname(os.fsdecode(walker.tars[0])), "*.tar")),
        )
    if not len(index):  # the parquet files are the source
        walker.others.pop(PARQUET, None)
    if walker.others:
        logger.warning("data.source %r: %s", source, describe_others(walker.others))
    if not len(index) and walker.parquets:
        return _parquet([os.fsdecode(os.path.join(walker.root, name)) for name in walker.parquets], source, options)
    if not len(index):
        from ijepa_ds.data.parquet import check_saved_to_disk

        check_saved_to_disk(path)
    if not len(index) and walker.packed:
        check_uncompressed(os.fsdecode(os.path.join(walker.root, walker.packed[0])))
    if not len(index):
        raise UserError(
            f"data.source: no readable image below {source!r}: {walker.num_files} files seen, none with a name ending in "
            f"{', '.join(EXTENSIONS)}, .tar or {PARQUET} (data.arrays reads .npy and .npz)"
        )
    return index


def _read_class(root: bytes, name: bytes, storage: Storage) -> bytes:
    path = os.path.join(root, name)

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read(_CLASS_READ)

    return class_text(storage.call(read, repr(os.fsdecode(path))), os.fsdecode(path))


def _fingerprint_or_reason(path: str) -> str:
    try:
        return fingerprint(path)
    except OSError as error:
        if is_fault(error):
            raise
        return error.strerror or str(error)
