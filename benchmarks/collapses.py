"""One healthy run and one of each kind of collapse on the quickstart's objects, and a picture of their curves.

    python -m benchmarks.collapses --train data/objects/train --test data/objects/test --out runs/collapses

Runs that are complete are not made again. The picture (OUT/collapses.png) shows what a user can watch: loss, deviation and
effective rank of the target's features, 20-NN score; a cross marks the first alarm of its kind.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.sides import ROOT
from ijepa_ds.plotting.style import plain_axes, save
from ijepa_ds.telemetry.events import read_scalars

# Name: overrides of configs/quickstart.yaml.
RUNS: dict[str, tuple[str, ...]] = {
    "healthy": (),
    "slow collapse: twice the rate": ("optimization.lr=7e-4",),
    "fast collapse: rate 0.02, EMA 0.9": ("optimization.lr=0.02", "optimization.ema=[0.9, 0.99]"),
    "dead predictor: rate 0.3": ("optimization.lr=0.3",),
}
CHARTS = {
    "loss": "Loss",
    "probe/target_std": "Deviation of the target's features",
    "probe/target_effective_rank": "Effective rank of the target's features",
    "eval/20-NN": "20-NN, percent (chance 20)",
}
COLOURS = ("#1f6feb", "#d9822b", "#c23030", "#7a5195")


def train(name: str, args: argparse.Namespace) -> Path:
    """Train one run through the real trainer unless it is complete; return its folder."""
    folder: Path = args.out / name.split(":")[0].replace(" ", "-")
    every = args.steps // 16
    keys = [f"run.dir={folder}", f"data.source={args.train}", f"run.seed={args.seed}", f"run.checkpoint_every={every}"]
    keys += [f"run.probe_every={every}", "run.keep_last=1", f"optimization.steps={args.steps}", f"eval.every={every}"]
    keys += [f"optimization.warmup_steps={args.steps // 12}", f"eval.train={args.train}", f"eval.test={args.test}"]
    command = [sys.executable, "-m", "ijepa_ds.train", "--config", str(ROOT / "configs" / "quickstart.yaml")]
    command += ["--deepspeed_config", str(ROOT / "ds_configs" / "zero0.json"), *keys, "eval.max_train=3000", *RUNS[name]]
    if not (folder / "completed.json").exists():
        with (args.out / f"{folder.name}.log").open("a") as log:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=False)  # a collapse may end it
    return folder


def draw(folders: dict[str, Path], path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(11, 7.2))
    for place, (tag, title) in enumerate(CHARTS.items(), start=1):
        axes = figure.add_subplot(2, 2, place)
        plain_axes(axes, title)
        for (name, folder), colour in zip(folders.items(), COLOURS, strict=False):
            steps, values = read_scalars(folder)[tag]
            axes.plot(steps, values, color=colour, label=name, linewidth=1.6)
            for step in first_alarms(folder).values():
                axes.plot(step, np.interp(step, steps, values), "x", color=colour, markersize=9, markeredgewidth=2.4)
        if tag == "loss":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(which="minor", length=0)
        axes.set_xlabel("step")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, frameon=False, fontsize=9)
    figure.subplots_adjust(left=0.06, right=0.98, top=0.88, bottom=0.08, hspace=0.36, wspace=0.16)
    save(figure, path)


def first_alarms(folder: Path) -> dict[str, int]:
    """Step of the first alarm of each kind."""
    path, found = folder / "health.jsonl", dict[str, int]()
    for line in path.read_text().splitlines() if path.exists() else []:
        alarm = json.loads(line)
        found.setdefault(alarm["name"], alarm["step"])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is missing, draw, print the last values and the alarms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="labelled images")
    parser.add_argument("--test", type=Path, required=True, help="others, to score")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and the picture")
    parser.add_argument("--runs", nargs="+", choices=[name.split(":")[0] for name in RUNS], help="some of the runs (all)")
    parser.add_argument("--steps", type=int, default=1600, help="optimizer steps (1600)")
    parser.add_argument("--seed", type=int, default=2, help="run.seed (2)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (1)")
    args = parser.parse_args(argv)
    for name in ("train", "test", "out"):
        setattr(args, name, Path(os.path.abspath(getattr(args, name))))
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        names = [name for name in RUNS if not args.runs or name.split(":")[0] in args.runs]
        folders = dict(zip(names, pool.map(train, names, [args] * len(names)), strict=True))
    draw(folders, args.out / "collapses.png")
    for name, folder in folders.items():
        values = read_scalars(folder)
        print(name, {tag: round(float(values[tag][1][-1]), 3) for tag in CHARTS}, first_alarms(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
