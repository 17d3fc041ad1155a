"""`ijepa-ds eval`: a run's frozen encoder scored on folders of labelled images."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sklearn
import torch
from torch import nn
from tqdm import tqdm

from ijepa_ds.config_schema import flatten
from ijepa_ds.evals import knn, linear
from ijepa_ds.evals.features import extract, set_image_size
from ijepa_ds.evals.folders import MAX_PIXELS, Labelled, Pair, batches, read_pair
from ijepa_ds.run_dir import versions
from ijepa_ds.visualize.bars import write_bars
from ijepa_ds.weights import read_encoder

logger = logging.getLogger(__name__)

TASKS = ("knn", "linear")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
RESULT = "result.json"
CHART = "scores.png"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an encoder is scored.

    Attributes:
        size: side of the images in pixels.
        mean: of each channel, of pixels in 0 .. 1, as in training.
        std: of each channel.
        tasks: of `TASKS`.
        k: neighbours; those above the number of training images are left out with a note.
        temperature: of the k-NN vote.
        c: inverse regularisation of the linear classifier.
        max_iterations: of its solver.
        batch_size: images a forward pass.
        threads: that decode images.
        device: where the encoder and the k-NN run.
        precision: of `PRECISIONS`.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tasks: Sequence[str] = TASKS
    k: Sequence[int] = knn.NEIGHBOURS
    temperature: float = 0.07
    c: float = 1.0
    max_iterations: int = 2000
    batch_size: int = 256
    threads: int = 2
    device: str = "cpu"
    precision: str = "float32"


def evaluate_folder(encoder: nn.Module, train_source: str, test_source: str, settings: Settings) -> dict[str, Any]:
    """Score an encoder on two folders with one folder a class.

    Args:
        encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`.
        train_source: what the classifiers learn from.
        test_source: what they are scored on.
        settings: how.

    Returns:
        what `evaluate_pair` returns.

    Raises:
        ValueError: folders that cannot be used, settings out of range, features that are not finite.
    """
    return evaluate_pair(encoder, read_pair(train_source, test_source), settings)


def evaluate_pair(encoder: nn.Module, pair: Pair, settings: Settings, label: str = "encoder") -> dict[str, Any]:
    """Score an encoder on folders that have been read.

    Args:
        encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`.
        pair: the images.
        settings: how.
        label: what the progress bar calls the encoder.

    Returns:
        `scores` {"20-NN": percent, ..., "linear": percent}; `details` of tasks; `notes`; `seconds` by part.

    Raises:
        ValueError: settings out of range, or features that are not finite.
    """
    unknown = [task for task in settings.tasks if task not in TASKS]
    if unknown or not settings.tasks:
        raise ValueError(f"tasks: expected some of {', '.join(TASKS)}, got {list(settings.tasks)}")
    k = [count for count in settings.k if count <= len(pair.train.labels)]
    if "knn" in settings.tasks and not k:
        raise ValueError(f"k: {list(settings.k)} are all above the {len(pair.train.labels)} training images")
    notes = list(pair.notes)
    if "knn" in settings.tasks and len(k) < len(settings.k):
        left_out = ", ".join(str(count) for count in settings.k if count not in k)
        notes.append(f"k = {left_out} left out: above the {len(pair.train.labels)} training images")
    start = time.perf_counter()
    train = _features(encoder, pair.train, settings, f"{label}, train")
    test = _features(encoder, pair.test, settings, f"{label}, test")
    seconds = {"features": time.perf_counter() - start}
    scores: dict[str, float] = {}
    details: dict[str, Any] = {"width": train.shape[1]}
    if "knn" in settings.tasks:
        start = time.perf_counter()
        sets = [part.to(settings.device) for part in (train, pair.train.labels, test, pair.test.labels)]
        scores |= knn.evaluate(*sets, k=k, temperature=settings.temperature)
        seconds["knn"] = time.perf_counter() - start
    if "linear" in settings.tasks:
        start = time.perf_counter()
        details["linear"] = linear.evaluate(
            train,
            pair.train.labels,
            test,
            pair.test.labels,
            c=settings.c,
            max_iterations=settings.max_iterations,
        )
        scores["linear"] = details["linear"]["top1"]
        seconds["linear"] = time.perf_counter() - start
        if not details["linear"]["converged"]:
            notes.append(f"linear: not converged after {settings.max_iterations} iterations, the score is not final")
    return {"scores": scores, "details": details, "notes": notes, "seconds": seconds}


def _features(encoder: nn.Module, images: Labelled, settings: Settings, label: str) -> torch.Tensor:
    read = batches(images.paths, settings.size, settings.batch_size, settings.threads)
    total = -(-len(images.paths) // settings.batch_size)
    bar = tqdm(read, desc=label, total=total, unit="batch", disable=None, leave=False)
    return extract(encoder, bar, settings.mean, settings.std, settings.device, PRECISIONS[settings.precision])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds eval`."""
    parser.add_argument("task", choices=(*TASKS, "all"), help="k nearest neighbours, logistic regression, or both")
    parser.add_argument("--checkpoint", required=True, help="run, checkpoint folder, or weights of any kind (docs/weights.md)")
    parser.add_argument("--train", required=True, help="labelled images to learn from: one folder a class")
    parser.add_argument("--test", required=True, help="labelled images to score: the same classes")
    parser.add_argument("--out", required=True, type=Path, help=f"folder for {RESULT} and {CHART}")
    parser.add_argument(
        "--which",
        choices=("target", "context", "untrained"),
        help="encoder (default: target, the EMA; of a file with one encoder, that)",
    )
    parser.add_argument("--heads", type=int, help="attention heads, where a file of weights does not say")
    parser.add_argument("--baseline", choices=("untrained",), help="score this beside it, for comparison")
    parser.add_argument("--image-size", type=int, help="pixels; default: the run's data.crop_size")
    parser.add_argument("--k", type=int, nargs="+", default=list(knn.NEIGHBOURS), help="numbers of neighbours")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the k-NN vote")
    parser.add_argument("--C", dest="c", type=float, default=1.0, help="inverse L2 strength of the linear classifier")
    parser.add_argument("--max-iterations", type=int, default=2000, help="of its solver")
    parser.add_argument("--batch-size", type=int, default=256, help="images a forward pass")
    parser.add_argument("--threads", type=int, default=2, help="that decode images")
    parser.add_argument("--device", help="such as cpu or cuda:0; default: cuda where there is one")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="float32", help="of matrix products")


def run(args: argparse.Namespace) -> int:
    """Evaluate, write `result.json` and `scores.png` to `args.out`, log a table; 0."""
    start = time.perf_counter()
    encoder, facts = read_encoder(args.checkpoint, args.which, args.heads)
    settings = Settings(
        size=args.image_size or facts.image_size,
        mean=facts.mean,
        std=facts.std,
        tasks=TASKS if args.task == "all" else (args.task,),
        k=args.k,
        temperature=args.temperature,
        c=args.c,
        max_iterations=args.max_iterations,
        batch_size=args.batch_size,
        threads=args.threads,
        device=args.device or ("cuda" if torch.cuda.is_available() else "cpu"),
        precision=args.precision,
    )
    pair = read_pair(args.train, args.test, facts.config.data.max_pixels if facts.config else MAX_PIXELS)
    set_image_size(encoder, settings.size)
    measured = evaluate_pair(encoder, pair, settings, facts.which)
    result: dict[str, Any] = {
        "scores": measured["scores"],
        "baseline": None,
        "chance": pair.chance,
        "details": measured["details"],
        "notes": measured["notes"],
        "checkpoint": {"checkpoint": facts.source, "which": facts.which, "step": facts.step},
        "data": {
            "train": args.train,
            "test": args.test,
            "num_train": len(pair.train.labels),
            "num_test": len(pair.test.labels),
            "num_classes": len(pair.classes),
        },
    }
    if args.baseline:
        other, _ = read_encoder(args.checkpoint, args.baseline, args.heads)
        set_image_size(other, settings.size)
        again = evaluate_pair(other, pair, settings, args.baseline)
        result["baseline"] = {"which": args.baseline, "scores": again["scores"], "details": again["details"]}
    result |= {"settings": vars(settings), "config": flatten(facts.config) if facts.config else None, "versions": versions()}
    result["versions"]["scikit-learn"] = sklearn.__version__
    result["seconds"] = measured["seconds"] | {"total": time.perf_counter() - start}
    write_result(args.out, result)
    logger.info("%s", table(result))
    logger.info("written: %s, %s", args.out / RESULT, args.out / CHART)
    return 0


def write_result(out: Path, result: dict[str, Any]) -> None:
    """Write `result.json` and `scores.png` into the folder `out`, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    aside = out / f".{RESULT}.partial"
    aside.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(out / RESULT)
    baseline = result["baseline"]
    write_bars(
        out / CHART,
        {name: (baseline["scores"][name] if baseline else None, score) for name, score in result["scores"].items()},
        title=f"{result['checkpoint']['which']} encoder{_step(result)}",
        chance=result["chance"],
    )


def _step(result: dict[str, Any]) -> str:
    """`, step 1000`, or nothing where a file of weights does not say."""
    step = result["checkpoint"]["step"]
    return "" if step is None else f", step {step}"


def table(result: dict[str, Any]) -> str:
    """The scores as lines of text, with the notes below."""
    which, data, baseline = result["checkpoint"]["which"], result["data"], result["baseline"]
    names = [which] + ([baseline["which"]] if baseline else [])
    lines = [
        f"{result['checkpoint']['checkpoint']}{_step(result)}: top-1 in percent, "
        f"{data['num_train']} training and {data['num_test']} test images, {data['num_classes']} classes",
        f"{'':<10}" + "".join(f"{name:>12}" for name in names),
    ]
    for name, score in result["scores"].items():
        values = [score] + ([baseline["scores"][name]] if baseline else [])
        lines.append(f"{name:<10}" + "".join(f"{value:>12.2f}" for value in values))
    lines.append(f"{'chance':<10}{result['chance']:>12.2f}")
    return "\n".join(lines + [f"note: {note}" for note in result["notes"]])
