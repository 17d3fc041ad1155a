"""`ijepa-ds summary`: one picture of a run: loss, masks, scores, nearest neighbours."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ijepa_ds.data.pillow import MAX_PIXELS
from ijepa_ds.data.transforms import UnreadableError
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.plotting.bars import Scores, draw_bars
from ijepa_ds.plotting.neighbours import ROW, TITLE, Found, draw_neighbours, neighbours_of, reading_of, rows_of
from ijepa_ds.plotting.style import INK, MUTED, TRAINED, literal, plain_axes, save
from ijepa_ds.telemetry.events import read_picture, read_scalars

logger = logging.getLogger(__name__)

_WIDTH = 12.0  # inches
_LOG_FROM = 20.0  # a loss with a larger range (factor) gets a logarithmic axis
_SMOOTH_FROM = 60  # points: longer curves also get a running mean
_MASKS = "Masks: image, context seen, targets predicted"


def write_summary(
    path: str | Path,
    *,
    losses: tuple[np.ndarray, np.ndarray],
    pictures: np.ndarray | None,
    scores: Scores,
    title: str,
    subtitle: str = "",
    chance: float | None = None,
    encoders: tuple[str, str] | None = None,
    neighbours: Mapping[str, Found] | None = None,
    max_pixels: int = MAX_PIXELS,
    values: Values = PLAIN,
) -> None:
    """Write the summary as a PNG.

    Args:
        path: of the PNG.
        losses: steps [n] and values [n]; n may be 0.
        pictures: uint8 [H, W, 3], such as `draw_batch` makes; None: left out.
        scores: name -> (untrained or None, trained) in percent; empty: left out.
        title: large text.
        subtitle: small text below the title.
        chance: chance level of the scores in percent.
        encoders: names of the two that `scores` compares.
        neighbours: encoder -> nearest training images of some test images (`evals.neighbours.nearest`); empty: left out.
        max_pixels: largest image that is decoded for `neighbours`.
        values: how its images become channels.
    """
    alike = ROW * (rows_of(neighbours) + 0.45) + 0.7 if neighbours else 0.0
    below = alike
    if pictures is not None:
        below += min(9.0, _WIDTH * 0.94 * pictures.shape[0] / pictures.shape[1]) + 0.6
    height = 1.0 + 3.5 + below
    figure = Figure(figsize=(_WIDTH, height))
    figure.text(0.03, 1 - 0.42 / height, literal(title), fontsize=17, color=INK, fontweight="bold", va="center")
    figure.text(0.03, 1 - 0.76 / height, literal(subtitle), fontsize=10, color=MUTED, va="center")
    top, bottom = 1 - 1.45 / height, (below + 0.5) / height
    columns = figure.add_gridspec(1, 2 if scores else 1, left=0.06, right=0.97, top=top, bottom=bottom, wspace=0.16)
    _draw_loss(figure.add_subplot(columns[0]), *losses)
    if scores:
        draw_bars(figure.add_subplot(columns[1]), scores, "Frozen-encoder scores", chance, *(encoders or ()))
    if pictures is not None:
        axes = figure.add_axes((0.03, (alike + 0.3) / height, 0.94, (below - alike - 0.6) / height))
        axes.imshow(pictures, interpolation="antialiased", aspect="equal")
        axes.set_anchor("NW")
        axes.axis("off")
        figure.text(0.03, (below - 0.1) / height, _MASKS, fontsize=11, color=INK, fontweight="bold", va="center")
    if neighbours:
        figure.text(0.03, (alike - 0.1) / height, TITLE, fontsize=11, color=INK, fontweight="bold", va="center")
        space = figure.add_axes((0.03, 0.1 / height, 0.94, (alike - 0.4) / height))
        draw_neighbours(space, neighbours, max_pixels, values)
    save(figure, Path(path))


def _draw_loss(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    plain_axes(axes, "Pretraining loss")
    axes.set_xlabel("step", fontsize=9, color=MUTED)
    steps, values = np.asarray(steps), np.asarray(values, dtype=np.float64)
    if not len(values):
        axes.text(0.5, 0.5, "no points logged", color=MUTED, ha="center", transform=axes.transAxes)
        return
    smooth = len(values) >= _SMOOTH_FROM
    axes.plot(steps, values, color=TRAINED, linewidth=1 if smooth else 1.8, alpha=0.3 if smooth else 1.0, label="as logged")
    if smooth:
        half = len(values) // 20
        mean = running_mean(values, half)
        axes.plot(steps, mean, color=TRAINED, linewidth=1.8, label=f"mean of {2 * half + 1} points")
        axes.legend(frameon=False, fontsize=9, labelcolor=MUTED, loc="upper right")
    if values.min() > 0 and values.max() / values.min() > _LOG_FROM:
        axes.set_yscale("log")
    axes.margins(x=0.02, y=0.08)
    last = float(values[-1])
    axes.set_title(f"last {last:.4g}", loc="right", fontsize=9, color=MUTED, pad=10)


def running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Centred running mean over `half` values on each side, fewer near the ends; [n] -> [n]."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    place = np.arange(len(values))
    reach = np.minimum(half, np.minimum(place, place[::-1]))  # one-sided windows would bias slopes
    return (total[place + reach + 1] - total[place - reach]) / (2 * reach + 1)


def run(args: argparse.Namespace) -> int:
    """Write the summary of a run; return exit code 0."""
    scalars = read_scalars(args.run)
    if "loss" not in scalars:
        raise ValueError(f"{args.run}: its events have no 'loss'; give the directory of a training run (run.dir)")
    picture = read_picture(args.run, "images/masks")
    result = _read_result(args.eval) if args.eval else None
    steps = scalars["loss"][0]
    facts = [f"{steps[-1]} steps"]
    if result:
        checkpoint, data = result["checkpoint"], result["data"]
        step = "" if checkpoint["step"] is None else f" of step {checkpoint['step']}"
        facts.append(f"{checkpoint['which']} encoder{step}")
        facts.append(f"{data['num_train']} training and {data['num_test']} test images, {data['num_classes']} classes")
    max_pixels, values = reading_of(result or {})
    write = partial(
        write_summary,
        args.out,
        losses=scalars["loss"],
        pictures=picture[1] if picture else None,
        scores=shown_scores(result) if result else {},
        title=args.title or Path(args.run).resolve().name,
        subtitle="  ·  ".join(facts),
        chance=result["chance"] if result else None,
        encoders=((result["baseline"] or {}).get("which", "untrained"), result["checkpoint"]["which"]) if result else None,
        max_pixels=max_pixels,
        values=values,
    )
    try:
        write(neighbours=neighbours_of(result) if result else None)
    except UnreadableError as error:  # gone, or inside a tar or parquet file, which the result names but does not hold
        logger.warning("the nearest neighbours are left out: %s", error)
        write()
    logger.info("written: %s", args.out)
    return 0


def _read_result(folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    if not file.is_file():
        raise ValueError(f"--eval: no result.json in {folder}; make it with `ijepa-ds eval all ... --out {folder}`")
    return json.loads(file.read_text(encoding="utf-8"))


def shown_scores(result: dict[str, Any]) -> Scores:
    """The scores of a result that are percent, beside those of its baseline; RankMe or errors of depth are not."""
    before = result["baseline"]["scores"] if result["baseline"] else {}
    others = result.get("unranked", [])
    return {name: (before.get(name), score) for name, score in result["scores"].items() if name not in others}
