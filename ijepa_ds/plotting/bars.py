"""Bar charts of scores before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ijepa_ds.plotting.style import INK, MUTED, TRAINED, UNTRAINED, plain_axes, save

Scores = Mapping[str, tuple[float | None, float]]  # name -> (untrained or None, trained), percent
_SPAN = 0.8  # share of a group's width that its bars take


def draw_bars(
    axes: Axes, scores: Scores, title: str, chance: float | None = None, before: str | None = None, after: str = "trained"
) -> None:
    """Draw grouped bars with their values.

    Args:
        axes: Axes to draw on.
        scores: Untrained and trained score by name, percent; a score without an untrained one gets a single bar.
        title: Title.
        chance: Chance level in percent, drawn as a dashed line.
        before: Legend of the first bar of a pair; None: untrained.
        after: Legend of the second bar.
    """
    plain_axes(axes, title)
    paired = any(first is not None for first, _ in scores.values())
    width = _SPAN / 2 if paired else _SPAN * 0.6
    size = 9 if len(scores) * (2 if paired else 1) <= 8 else 7.5
    for position, (first, second) in enumerate(scores.values()):
        shown = [(first, UNTRAINED, -width / 2, MUTED), (second, TRAINED, width / 2 if paired else 0.0, INK)]
        for value, colour, offset, text in shown:
            if value is None:
                continue
            axes.bar(position + offset, value, width * 0.92, color=colour)
            place: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": size, "color": text}
            axes.annotate(f"{value:.1f}", (position + offset, value), (0, 2), textcoords="offset points", **place)
    axes.set_xticks(range(len(scores)), list(scores), color=INK)
    spare = max(0.0, (3 - len(scores)) / 2)  # otherwise a single bar would fill the chart
    axes.set_xlim(-0.6 - spare, len(scores) - 0.4 + spare)
    highest = max((value for pair in scores.values() for value in pair if value is not None), default=0.0)
    axes.set_ylim(0, min(112.0, max(highest * 1.22, 10.0)))
    axes.set_ylabel("top-1, %", fontsize=9, color=MUTED)
    _legend(axes, paired, chance, before or "untrained", after)


def _legend(axes: Axes, paired: bool, chance: float | None, before: str, after: str) -> None:
    if chance is not None:
        axes.axhline(chance, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label=f"chance {chance:.1f}")
    if paired:
        axes.bar(0, 0, color=UNTRAINED, label=before)
        axes.bar(0, 0, color=TRAINED, label=after)
    if paired or chance is not None:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            borderaxespad=0.2,
            ncols=3,
            columnspacing=1.2,
            handlelength=1.2,
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
        )


def write_bars(
    path: Path,
    scores: Scores,
    *,
    title: str,
    chance: float | None = None,
    before: str | None = None,
    after: str = "trained",
) -> None:
    """Write a bar chart of scores as PNG; arguments as in `draw_bars`."""
    figure = Figure(figsize=(max(5.6, 1.3 * len(scores) + 1.4), 3.6), layout="constrained")
    draw_bars(figure.subplots(), scores, title, chance, before, after)
    save(figure, path)
