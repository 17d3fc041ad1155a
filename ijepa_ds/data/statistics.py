"""Statistics of the images of a source: one pass over a sample, by several processes."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ijepa_ds.data.headers import READ_ERRORS
from ijepa_ds.data.image_header import FORMATS, RASTERS, read_header
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.pillow import decode, reason
from ijepa_ds.data.reading import Reader
from ijepa_ds.terminal import Bar

CONSTANT = 1.0  # deviation of the pixels, of 255, below which an image shows nothing
_CHUNK = 64  # images a task
_BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I": 32, "F": 32}
_CHANNELS = {"1": 1, "L": 1, "P": 1, "I": 1, "F": 1, "LA": 2, "PA": 2, "CMYK": 4, "RGBA": 4, "RGBX": 4}


@dataclass
class Statistics:
    """Sums over the images of a sample.

    Attributes:
        images: that could be read.
        values: float64 [3, 256], shares of the values of each channel as training sees it (RGB, 8 bits), summed over images:
            every image has the same weight, as its crops have in training.
        kinds: (channels, bits a channel) of the files -> images.
        constant: images that show nothing: their pixels deviate by less than `CONSTANT`.
        unreadable: (position, reason).
        content: digest of a file's bytes -> positions of the images with this content.
        layout: of NumPy arrays, `hwc` or `chw`.
    """

    images: int = 0
    values: np.ndarray = field(default_factory=lambda: np.zeros((3, 256)))
    kinds: Counter[tuple[int, int]] = field(default_factory=Counter)
    constant: list[int] = field(default_factory=list)
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    content: dict[bytes, list[int]] = field(default_factory=dict)
    layout: str | None = None

    def add(self, position: int, content: bytes, max_pixels: int) -> None:
        """Add one image.

        Raises:
            ValueError, OSError: it cannot be decoded.
        """
        pixels = np.asarray(decode(content, max_pixels, self.layout))
        shares = np.stack([np.bincount(pixels[..., channel].ravel(), minlength=256) for channel in range(3)])
        shares = shares / (pixels.shape[0] * pixels.shape[1])
        self.images += 1
        self.values += shares
        self.kinds[_kind(content, self.layout)] += 1
        mean = shares @ np.arange(256)
        if float((shares @ np.arange(256) ** 2 - mean**2).max()) < CONSTANT**2:
            self.constant.append(position)
        self.content.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(position)

    def join(self, other: Statistics) -> None:
        """Add the sums of other images."""
        self.images += other.images
        self.values += other.values
        self.kinds += other.kinds
        self.constant += other.constant
        self.unreadable += other.unreadable
        for digest, positions in other.content.items():
            self.content.setdefault(digest, []).extend(positions)

    def mean(self) -> np.ndarray:
        """Mean of each channel, float64 [3], for pixels in 0 .. 1: `data.mean`."""
        return self.values @ np.arange(256) / 255 / self.images

    def deviation(self) -> np.ndarray:
        """Deviation of each channel about the mean over all images, float64 [3], for pixels in 0 .. 1: `data.std`."""
        second = self.values @ np.arange(256) ** 2 / 255**2 / self.images
        return np.sqrt(np.maximum(second - self.mean() ** 2, 0))

    def percentiles(self, shares: tuple[float, ...]) -> np.ndarray:
        """Values of each channel below which these percentages of the pixels lie, int64 [3, len(shares)]."""
        below = np.cumsum(self.values, axis=1) / self.images
        return np.stack([np.searchsorted(row, np.array(shares) / 100) for row in below]).clip(max=255)

    def duplicates(self) -> list[list[int]]:
        """Positions of images with the same bytes, in groups of two and more, largest group first."""
        groups = [sorted(positions) for positions in self.content.values() if len(positions) > 1]
        return sorted(groups, key=lambda group: (-len(group), group))


def _kind(content: bytes, layout: str | None) -> tuple[int, int]:
    """Channels of a file, and bits of each."""
    header = read_header(io.BytesIO(content), layout)
    if header.kind in RASTERS:
        return header.channels, np.dtype(header.depth).itemsize * 8
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return _CHANNELS.get(image.mode, 3), _BITS.get(image.mode, 8)


def measure(
    index: ImageIndex, sample: int, seed: int, workers: int, max_pixels: int, progress: bool = True, form: int = 0
) -> Statistics:
    """Read and decode a random sample of the readable images of an index.

    Args:
        index: the images.
        sample: images at most; 0: all.
        seed: of the choice.
        workers: processes.
        max_pixels: larger images are unreadable.
        progress: show a bar on a terminal.
        form: usual form of images that are not RGB of 8 bits (`forms`); 0: they are.
    """
    positions = index.readable()
    if sample and sample < len(positions):
        positions = np.sort(np.random.default_rng(seed).choice(positions, sample, replace=False))
    work = (form, index.values.layout, max_pixels)
    whole = _empty(*work[:2])
    with (
        tempfile.TemporaryDirectory() as folder,
        Bar(f"stats {index.source}", len(positions), "images", show=progress) as bar,
    ):
        index.save(Path(folder) / "images.index")
        for part in _parts(str(Path(folder) / "images.index"), positions, workers, work):
            whole.join(part)
            bar.update(part.images + len(part.unreadable))
    return whole


def _empty(form: int, layout: str | None) -> Statistics:
    if not form:
        return Statistics(layout=layout)
    from ijepa_ds.data.channel_statistics import ChannelStatistics  # late: it builds on this file

    return ChannelStatistics(form=form, layout=layout)


def _parts(index: str, positions: np.ndarray, workers: int, work: tuple[int, str | None, int]) -> Iterator[Statistics]:
    chunks = [positions[start : start + _CHUNK].tolist() for start in range(0, len(positions), _CHUNK)]
    if workers == 1 or len(chunks) == 1:
        yield from (_of_chunk(index, chunk, work) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(min(workers, len(chunks)), mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(_of_chunk, [index] * len(chunks), chunks, [work] * len(chunks))
    finally:
        pool.shutdown(cancel_futures=True)


_open: dict[str, Reader] = {}  # of this process


def _of_chunk(index: str, positions: list[int], work: tuple[int, str | None, int]) -> Statistics:
    if index not in _open:
        _open[index] = Reader(ImageIndex.open(Path(index)))
    found, max_pixels = _empty(*work[:2]), work[2]
    for position in positions:
        try:
            found.add(position, _open[index].read(position), max_pixels)
        except READ_ERRORS as error:
            found.unreadable.append((position, reason(error)))
    return found
