"""One picture of a source: sizes, values, classes, and a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ijepa_ds.plotting.style import INK, MUTED, TRAINED, literal, plain_axes, save

_CHANNELS = (("red", "#d64545"), ("green", "#2f9e44"), ("blue", "#1f6feb"))
_LEGEND = 10  # channels that are drawn
_NAMED = 25  # classes with their names
_COLUMNS = 10  # of the contact sheet


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes:
        title: name of the source.
        sizes: int [n, 2], width and height of all readable images.
        values: float [C, 256], shares of the values of each channel.
        limits: first and last value.
        classes: name -> images; empty: none.
        sheet: uint8 [m, S, S, 3], some images.
    """

    title: str
    sizes: np.ndarray
    values: np.ndarray
    classes: dict[str, int]
    sheet: np.ndarray
    limits: tuple[float, float] = (0.0, 255.0)


def write_statistics(path: Path, picture: Picture) -> None:
    """Write the picture as PNG."""
    rows = -(-len(picture.sheet) // _COLUMNS)
    below = 1.15 * rows + 0.6 if rows else 0.0
    height = 0.9 + 6.4 + below
    figure = Figure(figsize=(12, height))
    figure.text(0.03, 1 - 0.4 / height, literal(picture.title), fontsize=15, color=INK, fontweight="bold", va="center")
    figure.text(0.03, 1 - 0.7 / height, f"{len(picture.sizes):,} readable images", fontsize=10, color=MUTED, va="center")
    grid = figure.add_gridspec(
        2, 2, left=0.06, right=0.97, top=1 - 1.2 / height, bottom=(below + 0.5) / height, hspace=0.5, wspace=0.16
    )
    _draw_sizes(figure.add_subplot(grid[0, 0]), picture.sizes)
    _draw_aspect(figure.add_subplot(grid[0, 1]), picture.sizes)
    _draw_values(figure.add_subplot(grid[1, 0]), picture.values, picture.limits)
    _draw_classes(figure.add_subplot(grid[1, 1]), picture.classes)
    if rows:
        figure.text(0.03, (below - 0.25) / height, "Some images", fontsize=11, color=INK, fontweight="bold", va="center")
        axes = figure.add_axes((0.03, 0.1 / height, 0.94, (below - 0.5) / height))
        axes.imshow(_sheet(picture.sheet), aspect="equal")
        axes.set_anchor("NW")
        axes.axis("off")
    save(figure, path)


def _sheet(images: np.ndarray) -> np.ndarray:
    side = images.shape[1] + 4
    whole = np.full((-(-len(images) // _COLUMNS) * side, _COLUMNS * side, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // _COLUMNS * side, number % _COLUMNS * side
        whole[top : top + image.shape[0], left : left + image.shape[1]] = image
    return whole


def _draw_sizes(axes: Axes, sizes: np.ndarray) -> None:
    plain_axes(axes, "Shorter side, pixels")
    axes.hist(sizes.min(axis=1), bins=40, color=TRAINED)
    axes.set_ylabel("images", fontsize=9, color=MUTED)


def _draw_aspect(axes: Axes, sizes: np.ndarray) -> None:
    plain_axes(axes, "Width : height")
    axes.hist(sizes[:, 0] / sizes[:, 1], bins=40, color=TRAINED)
    axes.set_ylabel("images", fontsize=9, color=MUTED)


def _draw_values(axes: Axes, values: np.ndarray, limits: tuple[float, float]) -> None:
    rgb = len(values) == 3 and limits == (0.0, 255.0)
    plain_axes(axes, "Pixel values")
    for number, row in enumerate(values[:_LEGEND]):
        name, colour = _CHANNELS[number] if rgb else (f"channel {number}", f"C{number}")
        axes.plot(np.linspace(*limits, len(row)), 100 * row, color=colour, linewidth=1.2, label=name)
    axes.set_xlabel("value, of 255" if rgb else "value", fontsize=9, color=MUTED)
    axes.set_ylabel("share, %", fontsize=9, color=MUTED)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _draw_classes(axes: Axes, classes: dict[str, int]) -> None:
    plain_axes(axes, f"Images a class ({len(classes):,} classes)" if classes else "No classes")
    ordered = sorted(classes.items(), key=lambda item: (-item[1], item[0]))
    axes.bar(range(len(ordered)), [count for _, count in ordered], color=TRAINED, width=0.9)
    if 0 < len(ordered) <= _NAMED:
        axes.set_xticks(range(len(ordered)), [literal(name[:18]) for name, _ in ordered], rotation=45, ha="right", fontsize=7)
    else:
        axes.set_xticks([])
