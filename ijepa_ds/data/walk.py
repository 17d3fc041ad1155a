"""Recursive search for the images of a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator

from ijepa_ds.errors import is_fault
from ijepa_ds.storage import Storage

EXTENSIONS = (".bmp", ".dcm", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_ARRAYS = (b".npy", b".npz")  # images only where `data.arrays` is set: other files of a data set have these endings, too
COMPRESSED_TARS = (b".tgz", b".tbz2", b".txz", b".tar.gz", b".tar.bz2", b".tar.xz", b".tar.zst")
ARCHIVES = (b".tar", *COMPRESSED_TARS, b".zip", b".7z", b".rar")
OWN_FILES = frozenset({b"scenes.json"})  # that `ijepa-ds data scenes|objects` writes beside its images
PARQUET = ".parquet"
_MOST_ENDINGS = 6  # in a message
_ENDINGS = tuple(extension.encode() for extension in EXTENSIONS)


def is_image(name: bytes, arrays: bool = False) -> bool:
    """Return whether a file name has an image's extension; `arrays`: NumPy files are images."""
    return name.lower().endswith(_ENDINGS + _ARRAYS if arrays else _ENDINGS)


def ending_of(name: bytes) -> str:
    """Return a file name's ending for messages, such as `.gif`."""
    return os.path.splitext(os.fsdecode(name))[1].lower() or "none"


def describe_others(others: Counter[str]) -> str:
    """Return how many files have which other endings, the most frequent first."""
    listed = ", ".join(f"{ending} {count:,}" for ending, count in others.most_common(_MOST_ENDINGS))
    return f"{sum(others.values()):,} files with other endings left out ({listed})"


class Walker:
    """A recursive walk through a folder, sorted by the bytes of the relative paths.

    Symlinks are followed, except to a parent folder. Names that begin with a dot are skipped.

    Attributes:
        num_files: Files found so far, of any kind.
        others: Number of the files found so far that are no images, tars or classes, by ending.
        tars: Relative paths of the tars found so far.
        parquets: Relative paths of the parquet files found so far.
        packed: Relative paths of the compressed archives found so far.
        sidecars: Relative paths of the `.cls` files found so far, by their names without `.cls`; those of a folder are
            complete before its images are yielded.
        problems: (path, reason) of the folders that cannot be listed; faults of the storage end the walk instead.
    """

    def __init__(self, root: bytes, storage: Storage, beat: Callable[[], None] = lambda: None, arrays: bool = False) -> None:
        """Prepare a walk.

        Args:
            root: An absolute path.
            storage: Repeats calls that fail.
            beat: Called after every folder.
            arrays: NumPy files are images.
        """
        self.root, self._storage, self._beat, self._arrays = root, storage, beat, arrays
        self._done = self._total = 0  # entries of the root
        self.num_files = 0
        self.others: Counter[str] = Counter()
        self.tars: list[bytes] = []
        self.parquets: list[bytes] = []
        self.packed: list[bytes] = []
        self.sidecars: dict[bytes, bytes] = {}
        self.problems: list[tuple[str, str]] = []

    def share(self) -> float:
        """The share of the root's entries that the walk has passed."""
        return self._done / self._total if self._total else 0.0

    def images(self) -> Iterator[bytes]:
        """Yield the relative path of every file with an image's extension."""
        return self._below(b"", frozenset())

    def _below(self, prefix: bytes, above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
        folder = os.path.join(self.root, prefix)
        try:
            identity, names = self._storage.call(lambda: _list(folder, above), repr(os.fsdecode(folder)))
        except OSError as error:
            self.problems.append((os.fsdecode(folder), f"folder cannot be listed: {error.strerror}"))
            return
        self.sidecars |= {prefix + name[:-4]: prefix + name for name in names if name.endswith(b".cls")}
        self._beat()
        if not prefix:
            self._total = len(names)
        for name in names:
            if not prefix:
                self._done += 1
            if name.endswith(b"/"):
                yield from self._below(prefix + name, above | {identity})
            else:
                self.num_files += 1
                if is_image(name, self._arrays):
                    yield prefix + name
                elif name.lower().endswith(b".tar"):
                    self.tars.append(prefix + name)
                elif not name.endswith(b".cls") and name not in OWN_FILES:
                    self.others[ending_of(name)] += 1
                    if name.lower().endswith(PARQUET.encode()):
                        self.parquets.append(prefix + name)
                    if name.lower().endswith(ARCHIVES):
                        self.packed.append(prefix + name)


def _list(folder: bytes, above: frozenset[tuple[int, int]]) -> tuple[tuple[int, int], list[bytes]]:
    """Device and inode of a folder, and its sorted names, "name/" for folders; no names if it is one of `above`."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:  # a symlink to a parent folder
        return identity, []
    with os.scandir(folder) as entries:
        # A folder sorts as "name/", so that whole paths come in order ("a-b/1" before "a/1").
        return identity, sorted(e.name + b"/" if _is_folder(e) else e.name for e in entries if e.name[:1] != b".")


def _is_folder(entry: os.DirEntry[bytes]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if is_fault(error):  # some file systems tell the kind of an entry only by a further call
            raise
        return False  # a symlink to itself
