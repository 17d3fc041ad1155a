"""Plots scores against parameters, images, FLOPs and device-hours, with fitted laws, bands and published points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ijepa_ds.plotting.curves import COLOURS
from ijepa_ds.plotting.style import INK, MUTED, TRAINED, plain_axes, save
from ijepa_ds.scale.ladder import Ladder
from ijepa_ds.scale.power import Law
from ijepa_ds.scale.results import errors

# ImageNet-1k linear probe, percent, against A100-hours: (name, hours, percent, whether the hours were published). The
# paper gives H/14's as an upper bound; H/16-448's are H/14's times the ratio of their FLOPs (2,307 to 657 GFLOP an image).
PUBLISHED = (("ViT-H/14", 1152.0, 79.3, True), ("ViT-H/16, 448 px", 4045.0, 81.1, False))
_LABELS = {
    "parameters": "encoder parameters",
    "images": "images seen",
    "flops": "FLOPs",
    "device_hours": "device-hours (wall time)",
    "processor_hours": "processor-hours",
}
_MARKS = "osD^vP*X"


def write(path: Path, ladder: Ladder, rows: Sequence[Mapping[str, Any]], laws: Mapping[str, Law | str]) -> None:
    """Write the figure as a PNG; panels without points get a note."""
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    panels = figure.subplots(2, 3).flatten()
    what = f"{ladder.evaluation.score}, %" if ladder.evaluation else "loss"
    both = laws["parameters and images"]
    _points(panels[0], ladder, rows, "parameters", f"{what} against parameters")
    _points(panels[1], ladder, rows, "images", f"{what} against images")
    if isinstance(both, Law):
        _families(panels[0], ladder, rows, both, 0)
        _families(panels[1], ladder, rows, both, 1)
    for axes, name, law in (
        (panels[2], "flops", laws["FLOPs"]),
        (panels[3], "device_hours", laws["device-hours"]),
        (panels[4], "processor_hours", laws["processor-hours"]),
    ):
        _points(axes, ladder, rows, name, f"{what} against {_LABELS[name]}")
        if isinstance(law, Law):
            _band(axes, ladder, rows, law, name)
    _published(panels[5])
    _legend(panels[0], ladder, rows)
    save(figure, path)


def _split(name: str) -> tuple[str, str]:
    model, _, budget = name.partition("/")
    return model, budget


def _style(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[str, str]:
    """Colour of a rung's model and marker of its budget."""
    models, budgets = (list(dict.fromkeys(_split(row["rung"])[i] for row in rows)) for i in (0, 1))
    model, budget = _split(name)
    return COLOURS[models.index(model) % len(COLOURS)], _MARKS[budgets.index(budget) % len(_MARKS)]


def _shown(ladder: Ladder, error: np.ndarray) -> np.ndarray:
    """Errors converted to plotted values: scores, or the loss."""
    return 100 - error if ladder.evaluation else error


def _points(axes: Axes, ladder: Ladder, rows: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    plain_axes(axes, title)
    axes.set_xlabel(_LABELS[name], fontsize=9, color=MUTED)
    found = False
    for row, error in zip(rows, errors(ladder, rows), strict=True):
        if error is not None and row[name]:
            colour, mark = _style(rows, row["rung"])
            axes.plot(row[name], _shown(ladder, np.array(error)), mark, color=colour, markersize=6)
            found = True
    if found:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])


def _known(ladder: Ladder, rows: Sequence[Mapping[str, Any]], *names: str) -> list[Mapping[str, Any]]:
    pairs = zip(rows, errors(ladder, rows), strict=True)
    return [row for row, error in pairs if error is not None and all(row[name] for name in names)]


def _stretch(values: Sequence[float]) -> np.ndarray:
    """From below the least to three times the largest: as far as one would dare to look."""
    return np.geomspace(min(values) / 1.2, max(values) * 3, 100)


def _band(axes: Axes, ladder: Ladder, rows: Sequence[Mapping[str, Any]], law: Law, name: str) -> None:
    x = _stretch([row[name] for row in _known(ladder, rows, name)])
    bands = law.predict(x[:, None])
    axes.plot(x, _shown(ladder, bands.value), color=INK, linewidth=1.2)
    for low, high, strength in ((bands.low_run, bands.high_run, 0.10), (bands.low, bands.high, 0.18)):
        axes.fill_between(x, _shown(ladder, low), _shown(ladder, high), color=TRAINED, alpha=strength, linewidth=0)


def _families(axes: Axes, ladder: Ladder, rows: Sequence[Mapping[str, Any]], law: Law, variable: int) -> None:
    """The joint law along one variable, for each value of the other that was run."""
    known = _known(ladder, rows, *law.names)
    x = _stretch([row[law.names[variable]] for row in known])
    other = law.names[1 - variable]
    for row in {row[other]: row for row in known}.values():
        columns = [x, np.full_like(x, row[other])]
        bands = law.predict(np.column_stack(columns if variable == 0 else columns[::-1]))
        colour = MUTED if variable == 0 else _style(rows, row["rung"])[0]
        axes.plot(x, _shown(ladder, bands.value), color=colour, linewidth=1)
        axes.fill_between(x, _shown(ladder, bands.low), _shown(ladder, bands.high), color=colour, alpha=0.10, linewidth=0)


def _legend(axes: Axes, ladder: Ladder, rows: Sequence[Mapping[str, Any]]) -> None:
    for position, what in enumerate(("model", "budget")):
        for name in dict.fromkeys(_split(row["rung"])[position] for row in rows):
            row = next(row for row in rows if _split(row["rung"])[position] == name)
            colour, mark = _style(rows, row["rung"])
            colour, mark = (colour, "s") if what == "model" else (MUTED, mark)
            axes.plot([], [], color=colour, marker=mark, linestyle="none", label=name)
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="best")


def _published(axes: Axes) -> None:
    plain_axes(axes, "Published: ImageNet-1k linear, %")
    for name, hours, percent, known in PUBLISHED:
        axes.plot(hours, percent, "o", color=TRAINED, markerfacecolor=TRAINED if known else "white", markersize=7)
        text = f"{name}\n{'< ' if known else 'about '}{hours:,.0f}" + ("" if known else ", by FLOPs")
        axes.annotate(text, (hours, percent), (6, -18), textcoords="offset points", fontsize=8, color=INK)
    axes.set_xscale("log")
    axes.set_xlim(500, 20000)
    axes.set_ylim(77.5, 82.5)
    axes.set_xlabel("A100-hours of pretraining", fontsize=9, color=MUTED)
