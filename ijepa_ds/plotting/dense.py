"""Segmentations and depth maps beside the images and the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ijepa_ds.plotting.style import INK, MUTED, save

_SIDE = 1.7  # inches, of an image
_NAMED = 20  # classes in the legend
_MARGINS = {"left": 0.14, "right": 0.98, "wspace": 0.05, "hspace": 0.05}
_NONE = (1.0, 1.0, 1.0)  # colour of ignored pixels


@dataclass(frozen=True)
class Shown:
    """An image with its truth and predictions.

    Attributes:
        picture: uint8 [H, W, 3].
        truth: int16 [H, W], below 0 where ignored; or depths, float32 [H, W], 0 where ignored.
        predicted: by method, like the truth.
        score: percent of the pixels that the last method has right, or within a factor of 1.25.
        worst: it is here because its score is bad.
    """

    picture: np.ndarray
    truth: np.ndarray
    predicted: dict[str, np.ndarray]
    score: float
    worst: bool


def write_dense(path: Path, shown: Sequence[Shown], names: Sequence[str], title: str) -> None:
    """Write a PNG with one row an image: the image, the truth, each prediction.

    Args:
        path: of the PNG.
        shown: images.
        names: of the classes; empty: the values are depths.
        title: of the picture.
    """
    columns = ["image", "truth", *shown[0].predicted]
    bottom = 0.9 if names else 0.7
    height = 0.9 + _SIDE * len(shown) + bottom
    figure = Figure(figsize=(max(6.0, _SIDE * len(columns) + 1.4), height))
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=12, color=INK, fontweight="bold", va="center")
    grid = figure.subplots(
        len(shown), len(columns), squeeze=False,
        gridspec_kw={"top": 1 - 0.8 / height, "bottom": bottom / height, **_MARGINS},
    )  # fmt: skip
    drawn = None
    for row, item in zip(grid, shown, strict=True):
        values = [item.truth, *item.predicted.values()]
        known = np.concatenate([part[part > 0].ravel() for part in values]) if not names else np.zeros(1)
        limits = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        _frame(row[0], item.picture)
        for axes, part in zip(row[1:], values, strict=True):
            drawn = _frame(axes, _colours(part) if names else np.where(part > 0, part, np.nan), None if names else limits)
        what = "worst" if item.worst else "some"
        span = "" if names else f"\n{limits[0]:.3g} to {limits[1]:.3g}"
        row[0].set_ylabel(f"{what}\n{item.score:.0f} %{span}", fontsize=8, color=MUTED, rotation=0, ha="right", va="center")
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, fontsize=9, color=INK)
    if names:
        used = sorted(
            {int(v) for item in shown for part in (item.truth, *item.predicted.values()) for v in np.unique(part)} - {-1}
        )
        handles = [Patch(color=_colour(number), label=names[number]) for number in used[:_NAMED]]
        figure.legend(handles=handles, loc="lower center", ncols=5, frameon=False, fontsize=8)
    elif drawn is not None:
        bar = figure.colorbar(drawn, cax=figure.add_axes((0.3, 0.3 / height, 0.5, 0.12 / height)), orientation="horizontal")
        bar.set_ticks([])
        bar.set_label("depth: least to largest of each image, as written beside it", fontsize=8, color=MUTED)
    save(figure, path)


def _frame(axes: Axes, values: np.ndarray, limits: tuple[float, float] | None = None) -> Any:
    axes.set_xticks([])
    axes.set_yticks([])
    low, high = limits or (None, None)
    return axes.imshow(values, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")


def _colour(number: int) -> tuple[float, float, float]:
    return colormaps["tab20"](number % 20)[:3]


def _colours(labels: np.ndarray) -> np.ndarray:
    """RGB of classes, [H, W] -> [H, W, 3]; ignored pixels are white."""
    table = np.array([_NONE, *(_colour(number) for number in range(max(1, int(labels.max()) + 1)))])
    return table[labels.astype(np.int64) + 1]
