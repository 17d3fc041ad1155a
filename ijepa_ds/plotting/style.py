"""The common style of all figures: colours, axes, and atomic writing of files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ijepa_ds.durable import replacing
from ijepa_ds.shown import shown

INK = "#1f2933"
MUTED = "#7b8794"
RULE = "#d9dee3"
TRAINED = "#1f6feb"
UNTRAINED = "#c3cbd4"
DPI = 150


def literal(text: str) -> str:
    """A text that may hold names of files or runs, for matplotlib: one line, and `$` starts no formula."""
    return shown(text).replace("$", r"\$")


def literal_lines(text: str) -> str:
    """The same for a text of several lines."""
    return "\n".join(literal(line) for line in text.split("\n"))


def plain_axes(axes: Axes, title: str) -> None:
    """Set a left-aligned title, remove the box, and add faint horizontal grid lines."""
    axes.set_title(literal(title), loc="left", fontsize=11, color=INK, fontweight="bold", pad=10)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(colors=MUTED, labelsize=9, length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; readers never see a partial file."""
    with replacing(path) as partial:
        figure.savefig(partial, dpi=DPI, format="png", facecolor="white")
