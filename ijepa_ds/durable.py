"""Files that are on the disk when a function returns, with the permissions that the user's umask asks for."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)


def fsync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file and flush it to the disk.

    Args:
        tensors: name -> contiguous tensor of any shape.
        path: the file; an older one is replaced.
        metadata: text beside the tensors.

    Raises:
        OSError, SafetensorError: the disk refuses.
    """
    from safetensors.torch import save_file

    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    path.chmod(mode)  # the library's own file is readable by its owner alone: colleagues could not load it
    fsync(path)


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a log and flush it to the disk; where the disk refuses, that is said, and the run goes on."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        logger.error("%s cannot be written (%s): lines are lost; the run goes on", path, error.strerror)
