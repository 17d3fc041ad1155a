"""How a file of labels or depths becomes numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

_TRUTH = ("PNG", "TIFF")  # formats of labels; some of Pillow's others start programs
IGNORED = -1  # in labels as they are read; 0 in depths
_MOST_CLASSES = 1000


@dataclass(frozen=True)
class Reading:
    """How a file of labels or depths becomes numbers.

    Attributes:
        depth: depths instead of class labels.
        ignore: value that stands for no label; None: none does.
        first: value of the first class; lower ones are ignored.
        known: value -> class; other values are ignored; empty: values from `first`.
        scale: values of an integer depth file per unit.
        farthest: larger depths are ignored.
    """

    depth: bool = False
    ignore: int | None = 255
    first: int = 0
    known: dict[int, int] = field(default_factory=dict)
    scale: float = 1000.0
    farthest: float = float("inf")

    def read(self, file: str) -> np.ndarray:
        """Labels, int16 [H, W] with `IGNORED`, or depths, float32 [H, W] with 0 where a pixel is ignored.

        Raises:
            ValueError: says what is wrong with the file.
        """
        values = _values(Path(file))
        if self.depth:
            return self._depth(values)
        if values.dtype.kind == "f":
            raise ValueError(f"its values are {values.dtype}, expected integers: the numbers of classes")
        whole = values.astype(np.int64)
        if self.known:
            table = np.full(max(*self.known, int(whole.max())) + 1, IGNORED, np.int16)
            table[list(self.known)] = list(self.known.values())
            return np.where(whole >= 0, table[np.maximum(whole, 0)], np.int16(IGNORED))
        labels = whole - self.first
        labels[(whole < self.first) | (whole == self.ignore)] = IGNORED
        if labels.max() >= _MOST_CLASSES:
            raise ValueError(
                f"class {labels.max() + self.first}, expected less than {_MOST_CLASSES}; is it a picture of colours?"
            )
        return labels.astype(np.int16)

    def _depth(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "f":
            depth = values.astype(np.float32)
        else:
            depth = values.astype(np.float32) / np.float32(self.scale)
        if not np.isfinite(depth).all():
            raise ValueError(f"{int((~np.isfinite(depth)).sum())} depths are NaN or infinite; write 0 where none is known")
        if (depth < 0).any():
            raise ValueError(f"a depth of {depth.min():g}; expected values from 0, where 0 stands for none")
        depth[depth > self.farthest] = 0
        return depth


def _values(file: Path) -> np.ndarray:
    """Numbers of a PNG without conversion of colours, or of a .npy file; [H, W]."""
    if file.suffix == ".npy":
        values = np.load(file, allow_pickle=False)
    else:
        with Image.open(file, formats=_TRUTH) as picture:
            if picture.mode not in ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L"):
                raise ValueError(f"a picture of mode {picture.mode}, expected one channel of numbers")
            values = np.asarray(picture)
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise ValueError(f"{values.dtype} {list(values.shape)}, expected numbers [height, width]")
    return values
