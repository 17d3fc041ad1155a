"""Makers of images, tars and trees for the tests of this folder."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
from PIL import Image

from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.reading import Reader


def photo(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Something smooth, uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def coded(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """The bytes of an image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def tar_of(
    files: Mapping[str, bytes],
    kind: int = tarfile.GNU_FORMAT,
    links: Mapping[str, tuple[bytes, str]] = MappingProxyType({}),
    last: Mapping[str, bytes] = MappingProxyType({}),
) -> bytes:
    """A tar of files, of links, name -> (type, target), and of more files behind them."""
    with tarfile.open(fileobj=(made := io.BytesIO()), mode="w", format=kind) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, (type_, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, target
            tar.addfile(info)
        for name, content in last.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write files below a folder."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def listing(index: ImageIndex) -> dict[str, tuple[str | None, bytes | str]]:
    """Name -> (class, bytes), or the reason of an unreadable image instead of its bytes."""
    reader, found = Reader(index), {}
    for position, label in enumerate(index.labels.tolist()):
        content = index.bad.get(position) or reader.read(position)
        found[os.fsdecode(index.name(position))] = (index.classes[label] if label >= 0 else None, content)
    return found
