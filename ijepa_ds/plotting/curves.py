"""Line charts that compare scalars of several runs, one PNG per chart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ijepa_ds.plotting.style import INK, MUTED, literal, plain_axes, save
from ijepa_ds.telemetry.events import Scalars

COLOURS = ("#1f6feb", "#d1495b", "#2a9d6f", "#b8860b", "#7b4fc9", "#0f8b8d", "#8c564b", "#444444")
_STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))  # line styles of the tags in one chart


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: File name without extension.
        title: Title.
        words: How to read the chart.
        tags: TensorBoard tag -> legend ("" for a single tag).
        logarithmic: Use a log scale if the values span more than a factor of 20.
        matching: Regular expression of further tags; the legend is the tag without its section.
    """

    name: str
    title: str
    words: str
    tags: Mapping[str, str]
    logarithmic: bool = False
    matching: str = ""

    def legends(self, tags: Iterable[str]) -> dict[str, str]:
        """Tag -> legend: `tags` of the chart, and those of the given ones that match."""
        found = sorted(tag for tag in tags if self.matching and re.fullmatch(self.matching, tag))
        return {**self.tags, **{tag: tag.partition("/")[2].replace("_", " ") for tag in found}}


CHARTS = (
    Chart("loss", "Loss", "It also falls when the representation collapses.", {"loss": ""}, True),
    Chart(
        "rank",
        "Effective rank",
        "Dimensions in use; a fall towards 1 is a collapse.",
        {"probe/target_effective_rank": "target", "probe/prediction_effective_rank": "prediction"},
    ),
    Chart(
        "std",
        "Standard deviation of features",
        "Over patches; 0 is a collapse.",
        {"probe/target_std": "target", "probe/prediction_std": "prediction"},
    ),
    Chart("cosine", "Cosine of predicted and true", "1 is a perfect prediction.", {"probe/cosine_prediction_target": ""}),
    Chart("entropy", "Attention entropy", "1: attention is uniform; 0: on one patch.", {"probe/attention_entropy": ""}),
    Chart(
        "ema",
        "Distance of the EMA",
        "Relative distance of the target's from the encoder's weights.",
        {"probe/ema_distance": ""},
        True,
    ),
    Chart("gradient", "Gradient norm", "Before clipping.", {"gradient/norm": ""}, True),
    Chart("speed", "Images a second", "Over all ranks.", {"speed/images_per_second": ""}),
    Chart("mfu", "MFU", "Matrix products of the method as a share of the data sheet's peak.", {"speed/mfu": ""}),
    Chart("matmul", "Share of the measured product", "The same as a share of a large product.", {"speed/matmul_share": ""}),
    Chart("wait", "Share of the time waiting for images", "Above 5 % the loader is too slow.", {"time/data_wait": ""}),
    Chart("memory", "Peak memory of rank 0", "GiB.", {"memory/peak_gib": ""}),
    Chart("scores", "Scores during training", "Percent.", {}, matching=r"eval/(\d+-NN|mIoU_linear|mIoU_k-NN|delta1)"),
)
_SPAN = 20.0


def draw_chart(path: Path, chart: Chart, runs: Mapping[str, Scalars]) -> bool:
    """Write a chart as PNG and return True; return False without a file if no run has any of its tags.

    Args:
        path: File to write.
        chart: The chart.
        runs: Scalars by run name.
    """
    legends = chart.legends({tag for scalars in runs.values() for tag in scalars})
    lines = [
        (name, legend, number, position, *scalars[tag])
        for number, (name, scalars) in enumerate(runs.items())
        for position, (tag, legend) in enumerate(legends.items())
        if tag in scalars
    ]
    if not lines:
        return False
    figure = Figure(figsize=(5.6, 3.3), layout="constrained")
    axes = figure.subplots()
    plain_axes(axes, chart.title)
    values = np.concatenate([line[-1] for line in lines])
    for name, legend, number, position, steps, curve in lines:
        label = literal(", ".join(filter(None, (name if len(runs) > 1 else "", legend))))
        label = f"\N{ZERO WIDTH SPACE}{label}" if label.startswith("_") else label  # else matplotlib hides it
        style = _STYLES[position % len(_STYLES)]
        mark = "o" if len(steps) < 3 else None
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(steps, curve, color=colour, linestyle=style, linewidth=1.5, marker=mark, markersize=4, label=label or None)
    finite = values[np.isfinite(values)]
    if chart.logarithmic and len(finite) and finite.min() > 0 and finite.max() / finite.min() > _SPAN:
        axes.set_yscale("log")
    elif len(finite) and finite.min() >= 0:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("step", fontsize=9, color=MUTED)
    axes.margins(x=0.02)
    labelled = [label for label in axes.get_legend_handles_labels()[1] if not label.startswith("_")]
    if labelled:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=math.ceil(len(labelled) / 6))
    save(figure, path)
    return True
