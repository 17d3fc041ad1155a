"""A folder of features that earlier evaluations computed, so that another task or k starts at once.

A file's name is a digest of all that the features depend on: the encoder's tensors and numbers, the images with sizes and
times of their files, and how they are read. After a change of any of them the name is another one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ijepa_ds import __version__
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.durable import save_tensors

logger = logging.getLogger(__name__)
_ENDING = ".features.safetensors"
_NAME = "features"
_GIB = 2**30


def default_folder() -> Path:
    """`$IJEPA_DS_CACHE`, else `ijepa_ds` in `$XDG_CACHE_HOME`, by default `~/.cache`."""
    if named := os.environ.get("IJEPA_DS_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ijepa_ds"


def digest_of(facts: Mapping[str, Any]) -> str:
    """Name for features that depend on `facts` (JSON values) and on the versions of the code that computes them."""
    text = json.dumps({**facts, "versions": [__version__, torch.__version__]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def encoder_identity(encoder: nn.Module) -> str:
    """Digest of an encoder: the types of its modules, their plain attributes (heads, eps, grid), and all tensors."""
    total = hashlib.sha256()
    for name, module in encoder.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple) and key != "training"
        }
        total.update(f"{name} {type(module).__qualname__} {sorted(plain.items())}\n".encode())
    for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def images_identity(paths: Sequence[str]) -> str:
    """Digest of images in their order, with sizes and times of their files as they are now.

    Raises:
        OSError: a file is gone.
    """
    if isinstance(paths, ImageFiles):
        return paths.identity()
    total = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        total.update(os.fsencode(os.path.abspath(path)) + b"\0%d %d\n" % (status.st_size, status.st_mtime_ns))
    return total.hexdigest()


class FeatureCache:
    """Files of features in a folder of limited size; the one that was used longest ago goes first."""

    def __init__(self, folder: Path, most_gib: float) -> None:
        """Nothing is created before the first features are kept.

        Args:
            folder: of the files.
            most_gib: size of all files in GiB.
        """
        self.folder, self._most = folder, int(most_gib * _GIB)

    def find(self, digest: str, rows: int) -> Tensor | None:
        """Features [rows, D] that were kept; None if there are none. A damaged file is removed."""
        path = self._path(digest)
        try:
            features = load_file(path)[_NAME]
            if features.ndim != 2 or len(features) != rows or not bool(torch.isfinite(features).all()):
                raise ValueError(f"{list(features.shape)} instead of {rows} rows")
            os.utime(path)  # used now
            return features
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            logger.warning("%s cannot be used (%s): the features are computed again", path, error)
            self._remove(path)
            return None

    def keep(self, digest: str, features: Tensor) -> None:
        """Keep features; files that are used least make room. What cannot be written is only logged."""
        if features.numel() * features.element_size() > self._most:
            return
        path = self._path(digest)
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors({_NAME: features.contiguous()}, aside)
            aside.replace(path)
            self._make_room()
        except (OSError, SafetensorError) as error:
            logger.warning("features are not kept: %s cannot be written (%s)", path, error)
            self._remove(aside)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}{_ENDING}"

    def _make_room(self) -> None:
        """Remove files, those used longest ago first, until the rest fits."""
        found = []
        for path in self.folder.glob(f"*{_ENDING}"):
            try:
                status = path.stat()
            except OSError:  # another process has removed it
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        size = sum(row[1] for row in found)
        for _, num_bytes, path in sorted(found):
            if size <= self._most:
                return
            self._remove(path)
            size -= num_bytes

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed (%s)", path, error)
