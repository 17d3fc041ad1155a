"""RGB, RGB with depth, and depth alone, as TIFF of 16 bits: the same training and evaluation, on rendered scenes.

    ijepa-ds data scenes --out data/scenes/train --num 6000 --size 64 --seed 0 --split train --dense
    ijepa-ds data scenes --out data/scenes/test --num 1500 --size 64 --seed 1 --split test --dense
    python -m benchmarks.channels --train data/scenes/train --test data/scenes/test --out runs/channels --ways rgb rgbd depth

Each way is written to OUT/WAY/{train,test}, trained through the real trainer, and scored by `ijepa-ds eval knn` and `count`.
Depths are the distances that the renderer knows, clipped at 20 units; mean and deviation are of the training images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from benchmarks.sides import ROOT

WAYS = ("rgb", "rgbd", "depth")
FAR = 20_000  # of the renderer's 1,000 values a unit


def write(source: Path, out: Path, way: str) -> tuple[list[float], list[float]]:
    """Write a rendered set as TIFF; return mean and deviation of each channel in 0 to 1."""
    if (out / "scenes.json").exists():
        facts: dict[str, list[float]] = json.loads((out / "statistics.json").read_text())
        return facts["mean"], facts["std"]
    notes = json.loads((source / "images" / "scenes.json").read_text())
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for scene in notes["scenes"]:
        name = Path(scene["image_filename"])
        values = pixels(source, name, way)
        path = out / name.with_suffix(".tif")
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, values, photometric="rgb" if way == "rgb" else "minisblack", planarconfig="contig")
        scene["image_filename"] = str(name.with_suffix(".tif"))
        flat = values.reshape(-1, values.shape[2] if values.ndim == 3 else 1) / 65535
        count, total, squares = count + len(flat), total + flat.sum(axis=0), squares + np.square(flat).sum(axis=0)
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    facts = {"mean": [round(float(x), 4) for x in mean], "std": [round(float(x), 4) for x in std]}
    (out / "statistics.json").write_text(json.dumps(facts))
    (out / "scenes.json").write_text(json.dumps(notes))
    return facts["mean"], facts["std"]


def pixels(source: Path, name: Path, way: str) -> NDArray[np.uint16]:
    """An image as uint16, `[H, W, C]` or `[H, W]`."""
    depth = np.asarray(Image.open(source / "depth" / name.with_suffix(".png"), formats=["PNG"]))
    depth = (np.minimum(depth, FAR).astype(np.float64) * (65535 / FAR)).round().astype(np.uint16)
    if way == "depth":
        return depth
    rgb = np.asarray(Image.open(source / "images" / name, formats=["JPEG"]).convert("RGB")).astype(np.uint16) * 257
    return rgb if way == "rgb" else np.dstack([rgb, depth])


def run(way: str, args: argparse.Namespace) -> None:
    """Write, train and score one way; its log is OUT/WAY.log."""
    folder = args.out / way
    (mean, std), _ = (write(source, folder / part, way) for part, source in (("train", args.train), ("test", args.test)))
    keys = [f"model.channels={len(mean)}", "data.scale=65535", f"data.mean={mean}", f"data.std={std}"]
    keys += [f"run.dir={folder / 'run'}", f"data.source={folder / 'train'}", f"optimization.steps={args.steps}"]
    keys += [
        f"optimization.warmup_steps={args.steps // 12}",
        f"run.seed={args.seed}",
        f"run.checkpoint_every={args.steps // 4}",
    ]
    trainer = [sys.executable, "-m", "ijepa_ds.train", "--config", str(ROOT / "configs" / "scenes_tiny.yaml")]
    trainer += ["--deepspeed_config", str(ROOT / "ds_configs" / "zero0.json"), *keys]
    ways = [sys.executable, "-m", "ijepa_ds.cli", "eval"]
    sets = ["--checkpoint", str(folder / "run"), "--train", str(folder / "train"), "--test", str(folder / "test")]
    sets += ["--baseline", "untrained", "pixels"]
    commands = [
        trainer,
        [*ways, "knn", *sets, "--out", str(folder / "knn")],
        [*ways, "count", *sets, "--epochs", "20", "--schedule", "cosine", "--out", str(folder / "count")],
        [*ways, "count", *sets, "--pool", "grid4", "--epochs", "20", "--schedule", "cosine", "--out", str(folder / "grid4")],
    ]
    with (args.out / f"{way}.log").open("a") as log:
        for command in commands:
            if "--out" not in command or not (Path(command[-1]) / "result.json").exists():
                subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ways, one after the other or `--jobs` at once; print what each evaluation found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="scenes rendered with --dense")
    parser.add_argument("--test", type=Path, required=True, help="others, to score")
    parser.add_argument("--out", type=Path, required=True, help="folder for images, runs and scores")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=1700, help="optimizer steps (1700)")
    parser.add_argument("--seed", type=int, default=0, help="run.seed (0)")
    parser.add_argument("--jobs", type=int, default=1, help="ways at once (1)")
    args = parser.parse_args(argv)
    for name in ("train", "test", "out"):
        setattr(args, name, Path(os.path.abspath(getattr(args, name))))
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs) as pool:
        list(pool.map(run, args.ways, [args] * len(args.ways)))
    for way in args.ways:
        for task in ("knn", "count", "grid4"):
            found = json.loads((args.out / way / task / "result.json").read_text())
            scores = {"trained": found["scores"]} | {which: one["scores"] for which, one in found["baselines"].items()}
            score = "20-NN" if task == "knn" else "count"
            print(way, task, ", ".join(f"{which} {values[score]:.1f}" for which, values in scores.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
