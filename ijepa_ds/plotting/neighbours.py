"""Nearest training images of test images, by several encoders, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ijepa_ds.data.pillow import MAX_PIXELS
from ijepa_ds.data.transforms import load_eval_images
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.plotting.style import INK, MUTED, TRAINED, literal, save

Found = Sequence[Mapping[str, Any]]  # what `evals.neighbours.nearest` returns
ROW = 0.62  # inches
TITLE = "Test images and the training images nearest to them (blue frame: same class, red: another)"
_PIXELS = 96  # side of a thumbnail
_OTHER_CLASS = "#d64545"
_GAP = 0.35  # between groups of images, in images


def rows_of(found: Mapping[str, Found]) -> int:
    """Rows of images that `draw_neighbours` makes."""
    return -(-len(next(iter(found.values()))) // 2)


def draw_neighbours(axes: Axes, found: Mapping[str, Found], max_pixels: int, values: Values = PLAIN) -> None:
    """Draw test images, each followed by its neighbours by each encoder; two test images a row.

    A frame says whether a neighbour has the test image's class: blue, or red if it has not.

    Args:
        axes: to draw on.
        found: encoder's name -> neighbours of the same test images.
        max_pixels: largest image that is decoded.
        values: how images become channels.

    Raises:
        UnreadableError: names an image that is gone or cannot be read.
    """
    queries = len(next(iter(found.values())))
    names = [row["image"] for row in next(iter(found.values()))]
    names += [name for rows in found.values() for row in rows for name in row["nearest"]]
    once = list(dict.fromkeys(names))
    pixels = values.pictured(load_eval_images(once, _PIXELS, 1, max_pixels, values=values))
    pictures = dict(zip(once, pixels, strict=True))
    count = max(len(row["nearest"]) for rows in found.values() for row in rows)
    half = 1 + len(found) * (_GAP + count)
    axes.axis("off")

    def place(picture: np.ndarray, left: float, top: float, colour: str) -> None:
        axes.imshow(picture, extent=(left + 0.05, left + 0.95, top + 0.95, top + 0.05), zorder=1)
        axes.add_patch(Rectangle((left + 0.05, top + 0.05), 0.9, 0.9, fill=False, edgecolor=colour, linewidth=2, zorder=2))

    for column in range(min(2, queries)):
        start = column * (half + 1)
        axes.text(start + 0.05, -0.1, "image", fontsize=8, color=MUTED)
        for number, name in enumerate(found):
            axes.text(start + 1 + _GAP + number * (_GAP + count) + 0.05, -0.1, f"nearest by the {name}", fontsize=8, color=INK)
    for query in range(queries):
        start, top = (query % 2) * (half + 1), float(query // 2)
        for number, listed in enumerate(found.values()):
            row = listed[query]
            place(pictures[row["image"]], start, top, MUTED)
            for i, (name, label) in enumerate(zip(row["nearest"], row["classes"], strict=True)):
                left = start + 1 + _GAP + number * (_GAP + count) + i
                place(pictures[name], left, top, TRAINED if label == row["class"] else _OTHER_CLASS)
    axes.set_xlim(0, 2 * half + 1)  # `imshow` sets its own limits
    axes.set_ylim(rows_of(found), -0.45)
    axes.set_aspect("equal", anchor="NW")


def neighbours_of(result: Mapping[str, Any]) -> dict[str, Found]:
    """The neighbours in an evaluation's result, by encoder, baselines first; empty if there are none."""
    found = {f"{which} encoder": other["details"].get("neighbours") for which, other in result.get("baselines", {}).items()}
    which = result.get("checkpoint", {}).get("which", "trained")
    found[f"{which} encoder"] = result.get("details", {}).get("neighbours")
    return {name: rows for name, rows in found.items() if rows}


def reading_of(result: Mapping[str, Any]) -> tuple[int, Values]:
    """How the images of an evaluation's result are read: largest image in pixels, and how they become channels."""
    settings = result.get("settings", {})
    stored: dict[str, Any] = settings.get("values") or {}
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    return settings.get("max_pixels", MAX_PIXELS), Values(**given)


def write_neighbours(
    path: Path, found: Mapping[str, Found], max_pixels: int, values: Values = PLAIN, *, title: str = TITLE
) -> None:
    """Write the picture as PNG; arguments as in `draw_neighbours`."""
    height = ROW * (rows_of(found) + 0.45) + 0.35
    figure = Figure(figsize=(11.4, height))
    figure.text(0.005, 1 - 0.18 / height, literal(title), fontsize=10, color=INK, fontweight="bold", va="center")
    draw_neighbours(figure.add_axes((0, 0, 1, 1 - 0.35 / height)), found, max_pixels, values)
    save(figure, path)
