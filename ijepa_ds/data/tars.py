"""Tar shards as a source: patterns of file names, members, and fingerprints."""

from __future__ import annotations

import glob
import hashlib
import itertools
import logging
import os
import re
import shlex
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from ijepa_ds.data.classes import SIDECAR, class_of, class_text, sidecar_of
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import Container
from ijepa_ds.data.journal import Journal, chunk_key
from ijepa_ds.data.reading import read_range
from ijepa_ds.data.scan import Candidate, ScanOptions, scan
from ijepa_ds.data.tar_format import read_members
from ijepa_ds.data.tar_tree import TarFile, TarTree
from ijepa_ds.data.walk import ARCHIVES, EXTENSIONS, OWN_FILES, describe_others, ending_of, is_image
from ijepa_ds.errors import UserError, is_fault

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
_AT_ONCE = 32  # tars whose headers are read at once: each read waits for the storage
_FINGERPRINT = 16384  # bytes at either end of a tar
_COMPRESSED = (  # first bytes, name, command
    (b"\x1f\x8b", "gzip", "gzip -dc {path} > {tar}"),
    (b"\x1f\x9d", "compress", "gzip -dc {path} > {tar}"),
    (b"BZh", "bzip2", "bzip2 -dc {path} > {tar}"),
    (b"\xfd7zXZ\0", "xz", "xz -dc {path} > {tar}"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc {path} > {tar}"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc {path} > {tar}"),
    (b"PK\x03\x04", "zip", "unzip {path} -d {folder}"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x {path} -o{folder}"),
    (b"Rar!", "rar", "unrar x {path} {folder}/"),
)


def expand(pattern: str) -> list[str]:
    """Return the files that match a pattern with `{000..127}`, `{a,b}`, `*` or `?`.

    Braces list files that must all exist, in the order of the braces.

    Raises:
        ValueError: A range counts down, or files are missing.
        OSError: The storage fails.
    """
    names = _expand_braces(pattern)
    found = [sorted(glob.glob(name)) if any(c in name for c in "*?[") else [name] for name in names]
    paths = list(itertools.chain.from_iterable(found))
    missing = [path for path in paths if not _is_file(path)]
    if len(names) == 1 and missing:
        return []
    if missing:
        raise UserError(f"data.source: {pattern!r}: {len(missing)} of {len(paths)} files do not exist, such as {missing[0]!r}")
    return paths


def _is_file(path: str) -> bool:
    """`os.path.isfile`, but a fault of the storage does not make a file a missing one."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError as error:
        if is_fault(error):
            raise
    except ValueError:  # a zero byte in the name
        pass
    return False


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if last < first:
            raise UserError(f"data.source: {pattern!r}: {match[0]} counts down")
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    elif "," in match[1]:
        choices = match[1].split(",")
    else:
        return [pattern]
    rest = pattern[match.end() :]
    return [whole for choice in choices for whole in _expand_braces(pattern[: match.start()] + choice + rest)]


class Contents(NamedTuple):
    """What the headers of a tar say.

    Attributes:
        container: Its path and fingerprint.
        candidates: Its images.
        packed: Endings of the archives among its members.
        others: Endings of its other members that are no images, with their numbers.
        num_files: All its files.
    """

    container: Container
    candidates: list[Candidate]
    packed: list[str]
    others: dict[str, int]
    num_files: int

    def to_rows(self) -> list[Any]:
        """JSON values for the journal."""
        images = [(os.fsdecode(c.name), c.label and os.fsdecode(c.label), c.offset, c.num_bytes) for c in self.candidates]
        return [images, self.packed, self.others, self.num_files]

    @classmethod
    def from_rows(cls, container: Container, number: int, rows: list[Any]) -> Contents:
        """The inverse of `to_rows`; `number` is that of the container."""
        images, packed, others, num_files = rows
        found = [Candidate(number, os.fsencode(name), label and os.fsencode(label), *at) for name, label, *at in images]
        return cls(container, found, packed, others, num_files)


def read_contents(path: str, number: int, options: ScanOptions, journal: Journal) -> Contents:
    """Read the headers of a tar, or take what an interrupted scan has read; `number` is that of the container.

    Raises:
        UserError: The tar is damaged, cut short or compressed.
    """
    check_uncompressed(path)
    container = Container(os.path.abspath(path), fingerprint(path))
    arrays = ["arrays"] if options.values.layout else []
    key = chunk_key(["tar", container.path, container.fingerprint, options.tar_end, options.class_level, *arrays])
    if (known := journal.find(key)) is not None:
        return Contents.from_rows(container, number, known)
    files = list(TarTree(read_members(path, options.tar_end)).files())
    found = list(members(path, number, files, options.class_level, bool(arrays)))
    packed = [ending_of(file.name) for file in files if file.name.lower().endswith(ARCHIVES)]
    others = Counter(ending_of(file.name) for file in files if _is_other(file.name, bool(arrays)))
    contents = Contents(container, found, packed, others, len(files))
    if not any(candidate.reason for candidate in found):  # others are looked at again, as somebody may repair them
        journal.add([(key, contents.to_rows())])
    return contents


def scan_tars(paths: list[str], source: str, options: ScanOptions) -> ImageIndex:
    """Index the images in tars, in the order of `paths`; `source` is the name in messages.

    Raises:
        ValueError: A tar is damaged, cut short or compressed, or holds tars instead of images; or there is no image.
    """
    containers: list[Container] = []
    packed: list[tuple[str, str]] = []
    others: Counter[str] = Counter()
    num_files = 0
    storage, journal = options.storage(), Journal(options.journal)

    def read_patiently(numbered: tuple[int, str]) -> Contents:
        number, path = numbered
        return storage.call(lambda: read_contents(path, number, options, journal), repr(path))

    def candidates() -> Iterator[Candidate]:
        nonlocal num_files
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tar") as pool:
            for read in ahead(pool, read_patiently, enumerate(paths), _AT_ONCE):
                containers.append(read.container)
                options.beat()
                if read.packed:
                    packed.append((paths[len(containers) - 1], f"{len(read.packed)} {read.packed[0]} members"))
                others.update(read.others)
                num_files += read.num_files
                yield from read.candidates

    index = scan(source, containers, candidates(), options, lambda: len(containers) / len(paths), journal)
    if packed:
        path, inner = packed[0]
        text = f"data.source: {path!r} holds {inner}"
        if not len(index):
            raise UserError(
                f"{text}, no images: unpack it once, `mkdir tars && tar -xf {shlex.quote(path)} -C tars`, then give each of "
                "them a folder of its class: `for t in tars/*.tar; do mkdir ${t%.tar} && tar -xf $t -C ${t%.tar}; done`"
            )
        logger.warning("%s beside its images, which are left out", text)
    alike = Counter(container.fingerprint for container in containers)
    if repeated := [container.path for container in containers if alike[container.fingerprint] > 1]:
        logger.warning(
            "data.source %r: %d tars are the same in length, first and last bytes, such as %r and %r; images that they share "
            "count twice",
            *(source, len(repeated), *repeated[:2]),
        )
    if others:
        logger.warning("data.source %r: %s", source, describe_others(others))
    if not len(index):
        what = f"{num_files:,} files, none with a name ending in {', '.join(EXTENSIONS)}"
        nothing = "no files: archives of zeros alone, or of names that begin with a dot"
        raise UserError(
            f"data.source: no readable image in {source!r}: {len(paths)} tars with {what if num_files else nothing}"
        )
    return index


def ahead(pool: Executor, work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """Results of `work` in the order of `items`, with `count` calls under way."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _is_other(name: bytes, arrays: bool) -> bool:
    own = os.path.basename(name) in OWN_FILES
    return not (own or is_image(name, arrays) or name.endswith(SIDECAR) or name.lower().endswith(ARCHIVES))


def check_uncompressed(path: str) -> None:
    """Check that a file is not a compressed archive.

    Raises:
        ValueError: It is; the text has the command that unpacks it.
    """
    with open(path, "rb") as file:
        head = file.read(8)
    for magic, what, command in _COMPRESSED:
        if head.startswith(magic):
            quoted = shlex.quote(path)
            stem = re.sub(r"(\.tar)?\.(gz|bz2|xz|zst|lz4|zip|7z|Z)$|\.(tgz|tbz2?|txz|tzst)$|\.tar$", "", path)
            made = shlex.quote(f"{stem}.unpacked.tar" if "{tar}" in command else stem)
            raise UserError(
                f"data.source: {path!r} is compressed ({what}), and images are read by their offset in a tar: "
                f"`{command.format(path=quoted, tar=made, folder=made)}`"
            )


def members(
    path: str, container: int, files: Iterable[TarFile], level: int | None, arrays: bool = False
) -> Iterator[Candidate]:
    """Yield the images among the files of a tar with their classes (`classes`), in their order.

    Raises:
        ValueError: A `.cls` file holds no class, or an image has fewer folders than `level`.
    """
    images: list[TarFile] = []
    labels: dict[bytes, bytes] = {}
    with open(path, "rb") as tar:
        for file in files:
            if is_image(file.name, arrays):
                images.append(file)
            elif file.name.endswith(SIDECAR) and not file.reason:
                content = read_range(tar.fileno(), file.member.offset, file.member.num_bytes)
                labels[file.name.removesuffix(SIDECAR)] = class_text(content, f"{path}:{os.fsdecode(file.name)}")
    for file in images:
        label = sidecar_of(file.name, labels) or class_of(file.name, level)
        yield Candidate(container, file.name, label, file.member.offset, file.member.num_bytes, file.reason)


def fingerprint(path: str) -> str:
    """Return a hex digest of a tar's length, first and last bytes; it is cheap, and a copy has the same."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        ends = os.pread(file.fileno(), _FINGERPRINT, 0) + os.pread(file.fileno(), _FINGERPRINT, max(0, size - _FINGERPRINT))
    return hashlib.blake2b(size.to_bytes(8, "little") + ends, digest_size=16).hexdigest()
