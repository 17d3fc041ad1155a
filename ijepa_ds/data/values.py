"""From the numbers in a file to the channels of the network: which channels, which range, what stands for no data.

With the default keys images are RGB of 8 bits, and nothing here is used (`Values.plain`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ijepa_ds.config import DataConfig
from ijepa_ds.errors import ContentError

ADVICE = "model.channels, data.channels and data.scale say how such images are read"


@dataclass(frozen=True)
class Values:
    """How files become channels.

    Attributes:
        count: C, channels of the network.
        chosen: channels of the files, in their order in the network; None: all.
        low: values that become 0, one or C of them.
        high: values that become 1, one or C of them; None: 255, of 8-bit files only.
        clip: clip values outside `low` to `high`, instead of refusing the image.
        nodata: value that stands for no data, as NaN does; None: what a TIFF itself says.
        fill: what replaces them, C values in 0 .. 1.
        layout: `hwc` or `chw` of 3-D NumPy arrays; None: NumPy files are no images.
        shown: channels that pictures show as red, green and blue, or one as gray; None: the first three, or the first.
    """

    count: int = 3
    chosen: tuple[int, ...] | None = None
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] | None = None
    clip: bool = False
    nodata: float | None = None
    fill: tuple[float, ...] = ()
    layout: str | None = None
    shown: tuple[int, ...] | None = None

    @classmethod
    def of(cls, cfg: DataConfig) -> Values:
        """Return what a run's configuration says."""
        if len(cfg.mean) == 3 and cfg.channels is None and cfg.scale is None:
            return cls(layout=cfg.arrays)
        return cls(
            count=len(cfg.mean),
            chosen=cfg.channels,
            low=cfg.offset,
            high=cfg.scale,
            clip=cfg.outside == "clip",
            nodata=cfg.nodata,
            fill=cfg.mean,
            layout=cfg.arrays,
            shown=cfg.shown,
        )

    @property
    def plain(self) -> bool:
        """Whether images are converted to RGB of 8 bits."""
        return self.count == 3 and self.chosen is None and self.high is None

    @property
    def num_bytes(self) -> int:
        """Bytes of a pixel as the loader returns it."""
        return self.count * (1 if self.plain else 4)

    def scaled(
        self, plane: np.ndarray, channel: int, nodata: float | None = None, shown: tuple[float, float] | None = None
    ) -> tuple[np.ndarray, int]:
        """Scale the numbers of a channel.

        Args:
            plane: [h, w], of any type.
            channel: its number in the network.
            nodata: what the file says stands for no data.
            shown: range that the file declares, which counts without `high`: a DICOM's window.

        Returns:
            float32 [h, w] in 0 .. 1, and how many values were filled.

        Raises:
            ContentError: The values do not fit the declared range.
        """
        low, high, clip = _of(self.low, channel), 0.0, self.clip
        if self.high is None and shown is not None:
            low, high, clip = *shown, True
        else:
            high = self._high(plane.dtype, channel)
        missing = without_data(plane, nodata if self.nodata is None else self.nodata)
        wide = plane.dtype.itemsize > 2  # float32 holds integers of 16 bits exactly
        numbers = plane.astype(np.float64 if wide else np.float32)
        if missing is not None:
            numbers[missing] = low
        least, most = float(numbers.min()), float(numbers.max())
        if not (np.isfinite(least) and np.isfinite(most)):
            raise ContentError(f"channel {self._file_channel(channel)} has infinite values")
        if not clip and (least < _as_stored(low, plane.dtype) or most > _as_stored(high, plane.dtype)):
            raise ContentError(
                f"channel {self._file_channel(channel)} has values from {least:g} to {most:g}, outside data.offset {low:g} to "
                f"data.scale {high:g}"
            )
        if high > low:
            np.subtract(numbers, low, out=numbers)
            np.divide(numbers, high - low, out=numbers)
        else:  # a DICOM's window of one value: a step
            numbers = np.greater(numbers, low).astype(numbers.dtype)
        scaled = numbers.clip(0, 1, out=numbers).astype(np.float32, copy=False)
        if missing is None:
            return scaled, 0
        scaled[missing] = self.fill[channel]
        return scaled, int(missing.sum())

    def _high(self, dtype: np.dtype, channel: int) -> float:
        if self.high is None:
            if dtype != np.uint8:
                raise ContentError(f"{dtype} values: data.scale says which value becomes 1")
            return 255.0
        high = _of(self.high, channel)
        if dtype.kind in "iu" and np.iinfo(dtype).max < high:
            raise ContentError(f"{dtype} values, which cannot reach data.scale {high:g}: another depth")
        return high

    def _file_channel(self, channel: int) -> int:
        return channel if self.chosen is None else self.chosen[channel]

    def pictured(self, pixels: np.ndarray) -> np.ndarray:
        """Return what pictures show: uint8 or float32 in 0 .. 1, [..., C] -> uint8 [..., 3]."""
        if self.plain:
            return pixels
        chosen = self.shown or ((0, 1, 2) if self.count >= 3 else (0,))
        three = pixels[..., list(chosen if len(chosen) == 3 else chosen * 3)]
        return three if three.dtype == np.uint8 else np.rint(three * 255).astype(np.uint8)


PLAIN = Values()


def _of(values: tuple[float, ...], channel: int) -> float:
    return values[channel] if len(values) > 1 else values[0]


def _as_stored(value: float, dtype: np.dtype) -> float:
    """A bound as a float type holds it: 0.1 in float32 is above 0.1."""
    return float(dtype.type(value)) if dtype.kind == "f" else value


def without_data(plane: np.ndarray, nodata: float | None) -> np.ndarray | None:
    """Where numbers are missing, bool of the same shape; None: nowhere."""
    missing = np.isnan(plane) if plane.dtype.kind == "f" else None
    if nodata is not None and not np.isnan(nodata):
        with np.errstate(over="ignore"):
            value = plane.dtype.type(nodata) if plane.dtype.kind == "f" else nodata
        same = plane == value
        missing = same if missing is None else missing | same
    return missing if missing is not None and missing.any() else None
