"""How all pictures look: colours, axes, and figures that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2933"
MUTED = "#7b8794"
RULE = "#d9dee3"
TRAINED = "#1f6feb"
UNTRAINED = "#c3cbd4"
DPI = 150


def plain_axes(axes: Axes, title: str) -> None:
    """Left-aligned title, no box, faint horizontal rules behind the data."""
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold", pad=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG; a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial")
    figure.savefig(aside, dpi=DPI, format="png", facecolor="white")
    aside.replace(path)
