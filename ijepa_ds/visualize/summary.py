"""One picture of a run: loss curve, images with their masks, scores of the frozen encoder against its untrained self."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ijepa_ds import config
from ijepa_ds.data.index import ImageFolder
from ijepa_ds.data.transforms import load_eval_images
from ijepa_ds.masks import build_sampler
from ijepa_ds.visualize.masks import draw_batch

Scores = dict[str, tuple[float, float]]  # name -> (untrained, trained), percent


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds summary`."""
    parser.add_argument("--run", type=Path, required=True, help="run directory")
    parser.add_argument("--eval", type=Path, help="folder with the result.json of `ijepa-ds eval --baseline untrained`")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")


def run(args: argparse.Namespace) -> int:
    """`ijepa-ds summary`."""
    cfg = config.load(args.run / "config.yaml", [])
    curves = read_scalars(args.run)
    if "loss" not in curves:
        raise ValueError(f"{args.run}: no loss in its TensorBoard files; has the run logged a step?")
    images = ImageFolder.scan(cfg.data.source, cfg.data.max_pixels)
    chosen = np.linspace(0, len(images) - 1, min(6, len(images))).astype(int)
    pixels = load_eval_images([images.paths[int(i)] for i in chosen], cfg.data.crop_size, 1)
    sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
    masks = sampler.sample(0, 0, len(chosen), torch.device("cpu"))
    scores = scores_of(json.loads((args.eval / "result.json").read_text(encoding="utf-8"))) if args.eval else {}
    step = int(curves["loss"][0][-1])
    write_summary(
        args.out,
        losses=curves["loss"],
        pictures=draw_batch(torch.from_numpy(pixels), masks, cfg.model.patch_size),
        scores=scores,
        title=f"I-JEPA pretraining: {args.run.name}",
        subtitle=f"{step:,} steps of {cfg.optimization.batch_size} images, {len(images):,} images in all",
    )
    print(f"summary: {args.out}")
    return 0


def scores_of(result: dict[str, Any]) -> Scores:
    """(untrained, trained) of every task in a result.json that has a baseline."""
    trained, baseline = result["scores"], result.get("baseline", {})
    return {name: (baseline[name], trained[name]) for name in trained if name in baseline}


def read_scalars(run_dir: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every scalar in a run's TensorBoard files: tag -> (steps, values), steps ascending.

    Where a resumed attempt wrote a step again, its value counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, dict[int, float]] = {}
    for file in sorted(run_dir.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points.setdefault(tag, {}).update({e.step: e.value for e in events.Scalars(tag)})
    return {
        tag: (np.array(sorted(values)), np.array([values[s] for s in sorted(values)])) for tag, values in points.items()
    }


def write_summary(
    path: Path,
    *,
    losses: tuple[np.ndarray, np.ndarray],
    pictures: np.ndarray,
    scores: Scores,
    title: str,
    subtitle: str,
) -> None:
    """Draw the picture.

    Args:
        path: PNG to write.
        losses: (steps, values).
        pictures: uint8 `[H, W, 3]` from `draw_batch`.
        scores: percent; an empty one leaves the panel out.
        title: headline.
        subtitle: second line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.25])
    _draw_loss(figure.add_subplot(grid[0, 0] if scores else grid[:, 0]), losses)
    if scores:
        _draw_scores(figure.add_subplot(grid[1, 0]), scores)
    panel = figure.add_subplot(grid[:, 1])
    panel.imshow(pictures)
    panel.set_title("image | what the context encoder sees | target blocks", fontsize=11)
    panel.axis("off")
    figure.suptitle(f"{title}\n{subtitle}", fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_loss(axes: Any, losses: tuple[np.ndarray, np.ndarray]) -> None:
    steps, values = losses
    axes.plot(steps, values, color="#9db4c0", linewidth=1, label="loss")
    if len(values) >= 20:
        window = max(2, len(values) // 20)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="#1d3557", linewidth=2, label="running mean")
        axes.legend(frameon=False)
    axes.set(xlabel="step", ylabel="smooth L1", title="prediction loss", yscale="log")
    axes.grid(alpha=0.3)


def _draw_scores(axes: Any, scores: Scores) -> None:
    place, names = np.arange(len(scores)), list(scores)
    for offset, which, colour in ((-0.2, 0, "#ced4da"), (0.2, 1, "#2a9d8f")):
        bars = axes.bar(place + offset, [scores[n][which] for n in names], 0.38, color=colour)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_xticks(place, names)
    axes.set(ylabel="top-1 accuracy (%)", title="frozen target encoder")
    axes.legend(["untrained", "trained"], frameon=False)
    axes.margins(y=0.18)
    axes.spines[["top", "right"]].set_visible(False)
