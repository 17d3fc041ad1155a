"""`ijepa-ds eval`: features of a run's encoder on two labelled folders, scored."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import ijepa_ds
from ijepa_ds import config
from ijepa_ds.config import Config
from ijepa_ds.data.index import ImageFolder
from ijepa_ds.data.transforms import load_eval_images
from ijepa_ds.evals import knn, linear
from ijepa_ds.evals.features import extract
from ijepa_ds.weights import load_encoder

logger = logging.getLogger(__name__)
TASKS = {"knn": knn.evaluate, "linear": linear.evaluate}
_BATCH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds eval`."""
    parser.add_argument("task", choices=[*TASKS, "all"])
    parser.add_argument("--checkpoint", type=Path, required=True, help="run directory, or one RUN/checkpoints/step_...")
    parser.add_argument("--train", required=True, help="class folders to learn from")
    parser.add_argument("--test", required=True, help="class folders to score on")
    parser.add_argument("--which", choices=["target", "context", "untrained"], default="target", help="which encoder")
    parser.add_argument("--baseline", choices=["untrained", "context"], help="score this encoder too, beside it")
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json")


def run(args: argparse.Namespace) -> int:
    """`ijepa-ds eval`: print a table and write result.json."""
    started = time.perf_counter()
    tasks = list(TASKS) if args.task == "all" else [args.task]
    encoder, facts = load_encoder(args.checkpoint, args.which)
    cfg: Config = facts["config"]
    train, test = labelled_folders(args.train, args.test, cfg.data.max_pixels)
    scores = {args.which: evaluate(encoder, cfg, train, test, tasks)}
    if args.baseline:
        scores[args.baseline] = evaluate(load_encoder(args.checkpoint, args.baseline)[0], cfg, train, test, tasks)
    result: dict[str, Any] = {
        "scores": scores[args.which],
        **({"baseline": scores[args.baseline], "baseline_which": args.baseline} if args.baseline else {}),
        "which": args.which,
        "step": facts["step"],
        "checkpoint": facts["checkpoint"],
        "train": {"source": str(args.train), "images": len(train)},
        "test": {"source": str(args.test), "images": len(test)},
        "features": "output patches after the final LayerNorm, averaged",
        "config": config.to_text(cfg),
        "ijepa_ds": ijepa_ds.__version__,
        "seconds": round(time.perf_counter() - started, 1),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    aside = args.out / ".result.json.partial"
    aside.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    aside.rename(args.out / "result.json")
    print(table(scores))
    print(f"written to {args.out / 'result.json'}")
    return 0


def labelled_folders(train_source: str, test_source: str, max_pixels: int) -> tuple[ImageFolder, ImageFolder]:
    """Both folders, checked to have the same classes.

    Raises:
        ValueError: no class folders, or classes in the test folder that the training folder lacks.
    """
    train, test = ImageFolder.scan(train_source, max_pixels), ImageFolder.scan(test_source, max_pixels)
    for source, folder in ((train_source, train), (test_source, test)):
        if (folder.labels < 0).any() or len(folder.classes) < 2:
            raise ValueError(f"{source}: evaluation needs one folder a class, at least two of them")
    unknown = sorted(set(test.classes) - set(train.classes))
    if unknown:
        raise ValueError(f"{test_source} has classes that {train_source} lacks: {', '.join(unknown[:5])}")
    missing = sorted(set(train.classes) - set(test.classes))
    if missing:
        logger.warning("%s has no image of %d of the classes: %s", test_source, len(missing), ", ".join(missing[:5]))
    return train, test


def evaluate(
    encoder: nn.Module, cfg: Config, train: ImageFolder, test: ImageFolder, tasks: list[str]
) -> dict[str, float]:
    """Scores of an encoder in percent, by task name."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.to(device)
    features = [
        extract(encoder, _batches(folder, cfg), cfg.data.mean, cfg.data.std, device) for folder in (train, test)
    ]
    order = {name: i for i, name in enumerate(train.classes)}
    to_train = np.array([order[name] for name in test.classes])
    train_labels = torch.from_numpy(train.labels.astype(np.int64))
    test_labels = torch.from_numpy(to_train[test.labels].astype(np.int64))
    scores: dict[str, float] = {}
    for task in tasks:
        scores |= TASKS[task](features[0], train_labels, features[1], test_labels)
    return scores


def _batches(folder: ImageFolder, cfg: Config) -> Iterator[np.ndarray]:
    starts = range(0, len(folder), _BATCH)
    for start in tqdm(starts, desc=f"features of {folder.source}", unit="batch", disable=None, leave=False):
        paths = [folder.paths[i] for i in range(start, min(start + _BATCH, len(folder)))]
        yield load_eval_images(paths, cfg.data.crop_size, max(1, cfg.data.threads))


def table(scores: dict[str, dict[str, float]]) -> str:
    """Scores side by side, one encoder a column."""
    columns = list(scores)
    lines = ["".join(["task".ljust(16), *(name.rjust(12) for name in columns)])]
    for task in scores[columns[0]]:
        lines.append("".join([task.ljust(16), *(f"{scores[c][task]:12.2f}" for c in columns)]))
    return "\n".join(lines)
