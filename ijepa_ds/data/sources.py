"""What `data.source` may name: a folder, a list, tar shards, an index, or a mix of them."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import itertools
import logging
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml

from ijepa_ds.data.index import MAGIC, Container, ImageIndex, concatenate, describe
from ijepa_ds.data.scan import Candidate, ScanOptions, scan
from ijepa_ds.data.walk import EXTENSIONS, Walker, is_image

logger = logging.getLogger(__name__)

SHARD_INDEX = "images.index"  # beside shards written by `ijepa-ds data shard`
_LISTS = (".txt", ".csv", ".tsv")
_MIXES = (".yaml", ".yml")
_EXPECTED = (
    "expected a folder of images or of .tar shards, a list (.txt, .csv, .tsv), a .tar (or a pattern of them, such as "
    "'shards/{000..127}.tar' or 'shards/*.tar'), an index made by `ijepa-ds data index`, or a mix (.yaml)"
)
_PROBES = 64  # files of an index that are looked at when it is opened
_FINGERPRINT = 16384  # bytes at either end of a tar
_THREADS = 16


def open_source(source: str, options: ScanOptions | None = None) -> ImageIndex:
    """Find the images of a source: scan it, or map the index that it is.

    Args:
        source: See `docs/data.md`.
        options: How to scan.

    Raises:
        ValueError: there is no such source, it holds no readable image, or it changed since its index was made.
    """
    options = options or ScanOptions()
    try:
        index = _open(os.path.expanduser(source), source, options)
    except OSError as error:
        raise ValueError(f"data.source: {source!r} cannot be read: {error}") from error
    if len(index) == len(index.bad):
        bad = index.list_bad()
        raise ValueError(
            f"data.source: no readable image in {source!r}: "
            + (f"{len(bad)} with an image's name but unreadable: {describe(bad)}" if bad else "it is empty")
        )
    bad = index.list_bad()
    if bad:
        logger.warning("data.source %r: %d unreadable, others stand in for them: %s", source, len(bad), describe(bad))
    return index


def is_index(source: str) -> bool:
    """Tell whether a source is an index already, which nothing needs to scan."""
    path = os.path.expanduser(source)
    return os.path.isfile(path) and _starts_with(path, MAGIC)


def _open(path: str, source: str, options: ScanOptions) -> ImageIndex:
    if os.path.isdir(path):
        beside = os.path.join(path, SHARD_INDEX)
        return open_index(Path(beside), source) if is_index(beside) else _folder(path, source, options)
    if os.path.isfile(path):
        if _starts_with(path, MAGIC):
            return open_index(Path(path), source)
        ending = os.path.splitext(path)[1].lower()
        if ending in _LISTS:
            return _list(path, source, options)
        if ending in _MIXES:
            return _mix(path, source, options)
        if ending == ".tar":
            return _tars([path], source, options)
    elif matches := expand(path):
        return _tars(matches, source, options)
    what = "is not a source of images" if os.path.exists(path) else "does not exist"
    raise ValueError(f"data.source: {source!r} {what}: {_EXPECTED}")


def _starts_with(path: str, magic: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def open_index(path: Path, source: str) -> ImageIndex:
    """Map an index and see whether what it describes is still there.

    All tars are compared by fingerprint, files by looking at some of them; every read compares its file again.

    Raises:
        ValueError: naming what changed.
    """
    index = replace(ImageIndex.open(path), source=source)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="index") as pool:
        tars = [container for container in index.containers if container.fingerprint]
        seen = pool.map(_fingerprint_or_reason, [container.path for container in tars])
        changed = [(tar.path, now) for tar, now in zip(tars, seen, strict=True) if now != tar.fingerprint]
        changed = [(name, "other content" if len(now) == 32 else now) for name, now in changed]
        probes = np.unique(np.linspace(0, len(index) - 1, _PROBES).astype(int)).tolist()
        found = pool.map(lambda position: _change(index, position), probes)
        changed += [(index.shown(position), reason) for position, reason in zip(probes, found, strict=True) if reason]
    if changed:
        raise ValueError(
            f"data.source: {source!r} changed since its index {path} was made: {describe(changed)}; restore it, or index it "
            "again with `ijepa-ds data index`"
        )
    return index


def _change(index: ImageIndex, position: int) -> str:
    """What happened to a file since it was indexed; empty: nothing that can be seen from outside."""
    entry = index.entries[position]
    if position in index.bad or index.containers[int(entry["container"])].fingerprint:
        return ""
    try:
        now = os.stat(index.path(position)).st_size
    except OSError as error:
        return error.strerror or str(error)
    return "" if now == entry["num_bytes"] else f"{now} bytes, but {entry['num_bytes']} when it was indexed"


def _folder(path: str, source: str, options: ScanOptions) -> ImageIndex:
    walker = Walker(os.fsencode(os.path.abspath(path)))

    def candidates() -> Iterator[Candidate]:
        for name in walker.images():
            first, slash, _ = name.partition(b"/")
            yield Candidate(0, name, first if slash else None)

    index = scan(source, [Container(os.fsdecode(walker.root))], candidates(), options)
    if not len(index) and walker.tars:
        return _tars([os.fsdecode(os.path.join(walker.root, name)) for name in walker.tars], source, options)
    if walker.tars:
        logger.warning(
            "data.source %r: %d .tar files beside the images are not read; to use them name them: '%s'",
            *(source, len(walker.tars), os.path.join(source, "*.tar")),
        )
    if not len(index) and not walker.problems:
        raise ValueError(
            f"data.source: no readable image below {source!r}: {walker.num_files} files seen, none with a name ending in "
            f"{', '.join(EXTENSIONS)} or .tar"
        )
    return replace(index, problems=tuple(walker.problems))


def _list(path: str, source: str, options: ScanOptions) -> ImageIndex:
    """Paths are relative to the folder of the list."""
    folder, ending = os.path.dirname(os.path.abspath(path)), os.path.splitext(path)[1].lower()
    content = Path(path).read_bytes()
    rows = _lines(content) if ending == ".txt" else _table(content, source, "\t" if ending == ".tsv" else ",")
    candidates = (Candidate(0, name, label) for name, label in rows)
    return scan(source, [Container(folder)], candidates, options)


def _lines(content: bytes) -> Iterator[tuple[bytes, None]]:
    for line in content.split(b"\n"):
        if name := line.removesuffix(b"\r"):
            yield name, None


def _table(content: bytes, source: str, delimiter: str) -> Iterator[tuple[bytes, bytes | None]]:
    text = content.decode("utf-8-sig", "surrogateescape")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    if "path" not in (reader.fieldnames or ()):
        raise ValueError(
            f"data.source: {source!r}: the first line must name the columns, 'path' and maybe 'label'; it is "
            f"{delimiter.join(reader.fieldnames or ())!r}"
        )
    try:
        for row in reader:
            if not row["path"]:
                raise ValueError(f"data.source: {source!r}, line {reader.line_num}: no path")
            label = row.get("label")
            yield os.fsencode(row["path"]), os.fsencode(label) if label else None
    except csv.Error as error:
        raise ValueError(f"data.source: {source!r}, line {reader.line_num}: {error}") from error


def expand(pattern: str) -> list[str]:
    """Files of a pattern with `{000..127}`, `{a,b}`, `*`, `?`; braces name files that must exist, in their order.

    Raises:
        ValueError: a range that counts down, or files that are not there.
    """
    names = _braces(pattern)
    found = [sorted(glob.glob(name)) if any(c in name for c in "*?[") else [name] for name in names]
    paths = list(itertools.chain.from_iterable(found))
    missing = [path for path in paths if not os.path.isfile(path)]
    if len(names) == 1 and missing:
        return []
    if missing:
        raise ValueError(f"data.source: {pattern!r}: {len(missing)} of {len(paths)} files do not exist, such as {missing[0]!r}")
    return paths


def _braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise ValueError(f"data.source: {pattern!r}: {match[0]} counts down")
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        return [pattern]
    return [whole for choice in choices for whole in _braces(pattern[: match.start()] + choice + pattern[match.end() :])]


def _tars(paths: list[str], source: str, options: ScanOptions) -> ImageIndex:
    containers: list[Container] = []

    def candidates() -> Iterator[Candidate]:
        for number, path in enumerate(paths):
            containers.append(Container(os.path.abspath(path), fingerprint(path)))
            yield from members(path, number)

    return scan(source, containers, candidates(), options)


def members(path: str, container: int) -> Iterator[Candidate]:
    """The images of a tar in its order. Their class is that of `NAME.cls` beside them, else their folder's name.

    Raises:
        ValueError: it is not an uncompressed tar, or cut short.
    """
    images: list[Candidate] = []
    labels: dict[bytes, bytes] = {}
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            for member in tar:
                name = os.fsencode(member.name)
                if not member.isreg() or os.path.basename(name).startswith(b"."):
                    continue
                stem = _stem(name)
                if is_image(name):
                    folder = os.path.basename(os.path.dirname(name))
                    images.append(Candidate(container, name, folder or None, member.offset_data, member.size))
                elif name.endswith(b".cls"):
                    content = tar.extractfile(member)
                    labels[stem] = content.read().strip() if content else b""
    except tarfile.TarError as error:
        raise ValueError(f"data.source: {path!r} is not an uncompressed tar, or cut short: {error}") from error
    for image in images:
        yield image._replace(label=labels.get(_stem(image.name)) or image.label)


def _stem(name: bytes) -> bytes:
    """WebDataset's key: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition(b"/")
    return folder + slash + last.partition(b".")[0]


def fingerprint(path: str) -> str:
    """Digest of a tar's length, first and last bytes: cheap, and kept by a copy."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        ends = os.pread(file.fileno(), _FINGERPRINT, 0) + os.pread(file.fileno(), _FINGERPRINT, max(0, size - _FINGERPRINT))
    return hashlib.blake2b(size.to_bytes(8, "little") + ends, digest_size=16).hexdigest()


def _fingerprint_or_reason(path: str) -> str:
    try:
        return fingerprint(path)
    except OSError as error:
        return error.strerror or str(error)


def _mix(path: str, source: str, options: ScanOptions) -> ImageIndex:
    """`sources:` a list of `source:` (relative to the file's folder) and `weight:`, of all or of none."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"data.source: {source!r} is no YAML: {error}") from error
    rows = content.get("sources") if isinstance(content, dict) and set(content) == {"sources"} else None
    if not isinstance(rows, list) or not rows or not all(_is_row(row) for row in rows):
        raise ValueError(
            f"data.source: {source!r}: expected `sources:` with a list of `source: NAME` and `weight: a number above 0`"
        )
    weights = [row.get("weight") for row in rows]
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        raise ValueError(f"data.source: {source!r}: give every source a weight, or none")
    folder = os.path.dirname(os.path.abspath(path))
    parts = [os.path.join(folder, os.path.expanduser(row["source"])) for row in rows]
    return concatenate(
        [(open_source(part, options), part, weight) for part, weight in zip(parts, weights, strict=True)], source
    )


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not set(row) <= {"source", "weight"} or not isinstance(row.get("source"), str):
        return False
    weight = row.get("weight", 1)
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")
