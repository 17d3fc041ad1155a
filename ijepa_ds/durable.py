"""Durable writes: files are flushed to disk when a function returns, with the permissions of the user's umask."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file completely or not at all: yields a path beside `path`, which is flushed and renamed to `path` at the end.

    The folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    fsync(partial)
    partial.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all; names of files that are no UTF-8 are written as their bytes."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file and flush it to disk.

    Args:
        tensors: Name -> contiguous tensor of any shape.
        path: The file; an existing one is replaced.
        metadata: Texts stored in the file's header.

    Raises:
        OSError, SafetensorError: The file cannot be written.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(mode)  # safetensors creates files that only their owner can read
    fsync(path)


def thread_work(thread: int) -> list[str]:
    """What a thread of this process has done so far: bytes read and written, processor time; empty where /proc does not say it.

    Args:
        thread: the kernel's number (`native_id`).
    """
    found = []
    with suppress(OSError):
        fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
        found += fields[11:13]
    with suppress(OSError):
        found += Path(f"/proc/self/task/{thread}/io").read_text().split()
    return found


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append lines to a log file and flush it to disk; a write error is logged, not raised."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        logger.error("%s cannot be written (%s): lines are lost; the run continues", path, error.strerror)
