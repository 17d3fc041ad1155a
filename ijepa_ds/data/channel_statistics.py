"""Statistics of images that are not RGB of 8 bits: per channel, in the numbers of the files."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, field

import numpy as np

from ijepa_ds.data.forms import describe_form, form_of
from ijepa_ds.data.image_header import read_header
from ijepa_ds.data.planes import read_numbers
from ijepa_ds.data.statistics import Statistics
from ijepa_ds.data.values import Values, without_data
from ijepa_ds.errors import ContentError

_POINTS = 16  # along each side of the grid of pixels that is kept of an image, for percentiles
_BINS = 256


@dataclass
class ChannelStatistics(Statistics):
    """Sums over the images of a sample that have the usual form; the others count as unreadable.

    Attributes:
        form: the usual form (`forms`).
        moments: float64 [2, C], means of the values and of their squares in each image, summed over images.
        least: float64 [C].
        most: float64 [C].
        missing: float64 [C], shares of NaN and no data in each image, summed over images.
        points: float64 [k, C] of each image, pixels on a grid; NaN where there is no data.
    """

    form: int = 0
    moments: np.ndarray = field(default_factory=lambda: np.zeros((2, 1)))
    least: np.ndarray = field(default_factory=lambda: np.array([np.inf]))
    most: np.ndarray = field(default_factory=lambda: np.array([-np.inf]))
    missing: np.ndarray = field(default_factory=lambda: np.zeros(1))
    points: list[np.ndarray] = field(default_factory=list)

    def add(self, position: int, content: bytes, max_pixels: int) -> None:
        """Add one image.

        Raises:
            ValueError, OSError: it cannot be decoded, or has another form.
        """
        header = read_header(io.BytesIO(content), self.layout)
        form = form_of(header.channels, header.depth)
        if form != self.form:
            raise ContentError(f"{describe_form(form)}, but most images of the source have {describe_form(self.form)}")
        pixels, nodata, _ = read_numbers(content, Values(layout=self.layout), None, max_pixels)
        numbers = pixels.astype(np.float64)
        if (missing := without_data(pixels, nodata)) is not None:
            numbers[missing] = np.nan
        known = np.isfinite(numbers)
        if np.isinf(numbers).any():
            raise ContentError("infinite values")
        count = known.sum(axis=(0, 1))
        if not count.all():
            raise ContentError("a channel without any data")
        mean, square = np.nanmean(numbers, axis=(0, 1)), np.nanmean(numbers**2, axis=(0, 1))
        least, most = np.nanmin(numbers, axis=(0, 1)), np.nanmax(numbers, axis=(0, 1))
        self.images += 1
        self.kinds[header.channels, np.dtype(header.depth).itemsize * 8] += 1
        self.moments = self.moments + np.stack([mean, square])
        self.least, self.most = np.minimum(self.least, least), np.maximum(self.most, most)
        self.missing = self.missing + (1 - count / known[..., 0].size)
        if (least == most).all():
            self.constant.append(position)
        rows, columns = (np.unique(np.linspace(0, side - 1, _POINTS).astype(int)) for side in numbers.shape[:2])
        self.points.append(numbers[rows][:, columns].reshape(-1, numbers.shape[2]))
        self.content.setdefault(hashlib.blake2b(content, digest_size=16).digest(), []).append(position)

    def join(self, other: Statistics) -> None:
        """Add the sums of other images."""
        assert isinstance(other, ChannelStatistics)
        super().join(other)
        self.moments, self.missing = self.moments + other.moments, self.missing + other.missing
        self.least, self.most = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        self.points += other.points

    def percentiles(self, shares: tuple[float, ...]) -> np.ndarray:
        """Values of each channel below which these percentages of the kept pixels lie, float64 [C, len(shares)]."""
        return np.nanpercentile(np.concatenate(self.points), shares, axis=0).T

    def whole_range(self) -> tuple[np.ndarray, np.ndarray]:
        """`data.offset` and `data.scale` [C] that refuse no image: all that the type can hold; of floats, all that was seen."""
        dtype = np.dtype(describe_form(self.form).rpartition(" ")[2])
        if dtype.kind == "f":
            return self.least, self.most
        info = np.iinfo(dtype)
        return np.full(len(self.most), float(info.min)), np.full(len(self.most), float(info.max))

    def scaled(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`data.mean` and `data.std` [C] for a range that holds all values."""
        mean, square = self.moments / self.images
        return (mean - low) / (high - low), np.sqrt(np.maximum(square - mean**2, 0)) / (high - low)

    def clipped(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`data.mean` and `data.std` [C] for a range to which values are clipped, by the kept pixels."""
        points = ((np.concatenate(self.points) - low) / (high - low)).clip(0, 1)
        return np.nanmean(points, axis=0), np.nanstd(points, axis=0)

    def histogram(self) -> np.ndarray:
        """Shares of the kept pixels in 256 parts of the range that was seen, float64 [C, 256]."""
        low, high = self.least.min(), self.most.max()
        columns = np.concatenate(self.points).T
        counts = [np.histogram(row[np.isfinite(row)], _BINS, (low, max(high, low + 1e-12)))[0] for row in columns]
        return np.stack([row / max(1, row.sum()) for row in counts])
