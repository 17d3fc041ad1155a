"""Tar shards as a source: patterns of file names, members, and fingerprints."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import re
import tarfile
from collections.abc import Iterator

from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import Container
from ijepa_ds.data.scan import Candidate, ScanOptions, scan
from ijepa_ds.data.walk import is_image

_FINGERPRINT = 16384  # bytes at either end of a tar


def expand(pattern: str) -> list[str]:
    """Return the files that match a pattern with `{000..127}`, `{a,b}`, `*` or `?`.

    Braces list files that must all exist, in the order of the braces.

    Raises:
        ValueError: A range counts down, or files are missing.
    """
    names = _expand_braces(pattern)
    found = [sorted(glob.glob(name)) if any(c in name for c in "*?[") else [name] for name in names]
    paths = list(itertools.chain.from_iterable(found))
    missing = [path for path in paths if not os.path.isfile(path)]
    if len(names) == 1 and missing:
        return []
    if missing:
        raise ValueError(f"data.source: {pattern!r}: {len(missing)} of {len(paths)} files do not exist, such as {missing[0]!r}")
    return paths


def _expand_braces(pattern: str) -> list[str]:
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
    rest = pattern[match.end() :]
    return [whole for choice in choices for whole in _expand_braces(pattern[: match.start()] + choice + rest)]


def scan_tars(paths: list[str], source: str, options: ScanOptions) -> ImageIndex:
    """Index the images in tars, in the order of `paths`; `source` is the name in messages."""
    containers: list[Container] = []

    def candidates() -> Iterator[Candidate]:
        for number, path in enumerate(paths):
            containers.append(Container(os.path.abspath(path), fingerprint(path)))
            yield from members(path, number)

    return scan(source, containers, candidates(), options)


def members(path: str, container: int) -> Iterator[Candidate]:
    """Yield the images of a tar in its order.

    The class of an image is the content of its `NAME.cls` (WebDataset), or else the name of its folder.

    Raises:
        ValueError: The file is not an uncompressed tar, or is truncated.
    """
    images: list[Candidate] = []
    labels: dict[bytes, bytes] = {}
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            for member in tar:
                name = os.fsencode(member.name)
                if not member.isreg() or os.path.basename(name).startswith(b"."):
                    continue
                key = _sample_key(name)
                if is_image(name):
                    folder = os.path.basename(os.path.dirname(name))
                    images.append(Candidate(container, name, folder or None, member.offset_data, member.size))
                elif name.endswith(b".cls"):
                    content = tar.extractfile(member)
                    labels[key] = content.read().strip() if content else b""
    except tarfile.TarError as error:
        raise ValueError(f"data.source: {path!r} is not an uncompressed tar, or cut short: {error}") from error
    for image in images:
        yield image._replace(label=labels.get(_sample_key(image.name)) or image.label)


def _sample_key(name: bytes) -> bytes:
    """Return WebDataset's key: the path up to the first dot of its last part."""
    folder, slash, last = name.rpartition(b"/")
    return folder + slash + last.partition(b".")[0]


def fingerprint(path: str) -> str:
    """Return a hex digest of a tar's length, first and last bytes; it is cheap, and a copy has the same."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        ends = os.pread(file.fileno(), _FINGERPRINT, 0) + os.pread(file.fileno(), _FINGERPRINT, max(0, size - _FINGERPRINT))
    return hashlib.blake2b(size.to_bytes(8, "little") + ends, digest_size=16).hexdigest()
