"""Heat maps over images: rows of panels in one PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from ijepa_ds.plotting.style import INK, MUTED, literal, literal_lines, save

COLOURS = "viridis"  # perceptually uniform, also for colour-blind readers and in greyscale
_SIDE = 1.9  # inches per panel


@dataclass(frozen=True)
class Panel:
    """One panel of a row.

    Attributes:
        title: Title.
        picture: [H, W, 3], uint8 or float in 0 .. 1; None: only the map.
        values: float [G, G], drawn over the picture in colours; NaN is transparent.
        limits: Lower and upper limit of the colour scale; None: those of the values.
        marks: Outlined rectangles (row, column, height, width), in patches of the G x G grid.
    """

    title: str
    picture: np.ndarray | None = None
    values: np.ndarray | None = None
    limits: tuple[float, float] | None = None
    marks: tuple[tuple[int, int, int, int], ...] = ()


def draw_row(path: Path, panels: Sequence[Panel], legend: str = "", columns: int = 8, title: str = "") -> None:
    """Write panels as a PNG.

    Args:
        path: File to write.
        panels: The panels, in reading order.
        legend: Label of the colour bar; empty: no colour bar.
        columns: Panels per row.
        title: Title of the picture: what is drawn, and which encoder.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width, lines = _SIDE * columns + 0.5, fill(title, max(28, 14 * columns), break_long_words=False)
    above = 0.2 * (lines.count("\n") + 1) if lines else 0.0
    figure = Figure(figsize=(width, (_SIDE + 0.28) * rows + above), layout="constrained")
    if lines:
        figure.suptitle(literal_lines(lines), x=0.01, ha="left", fontsize=9.5, color=INK, fontweight="bold")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    mapped = [_draw(axes, panel) for axes, panel in zip(grid.flat, panels, strict=False)]
    last = next((image for image in reversed(mapped) if image is not None), None)
    if last is not None and legend:
        bar = figure.colorbar(last, ax=grid.ravel().tolist(), shrink=0.8, pad=0.01, aspect=18)
        bar.set_label(legend, fontsize=8, color=MUTED)
        bar.ax.tick_params(labelsize=7, colors=MUTED)
        bar.outline.set_visible(False)  # type: ignore[operator]
    save(figure, path)


def _draw(axes: Axes, panel: Panel) -> AxesImage | None:
    axes.set_title(literal(panel.title), fontsize=8, color=INK, loc="left", pad=3)
    drawn = None
    extent = None
    side = 1
    if panel.values is not None:
        side = len(panel.values)
        extent = (-0.5, side - 0.5, side - 0.5, -0.5)  # coordinates in patches
    if panel.picture is not None:
        axes.imshow(panel.picture, extent=extent, interpolation="nearest")
    if panel.values is not None:
        low, high = panel.limits or (float(np.nanmin(panel.values)), float(np.nanmax(panel.values)))
        drawn = axes.imshow(
            np.ma.masked_invalid(panel.values),
            cmap=COLOURS,
            vmin=low,
            vmax=max(high, low + 1e-9),
            interpolation="nearest",
            alpha=0.85 if panel.picture is not None else 1.0,
            extent=extent,
        )
    for row, column, height, width in panel.marks:
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#e6483c", linewidth=1.6))
    return drawn
