"""`ijepa-ds eval`: score an encoder on labelled images; on several ranks with `deepspeed --module ijepa_ds.evals`."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from typing import Any

import sklearn
from torch import nn

from ijepa_ds.checkpoint.run_dir import versions
from ijepa_ds.config.schema import flatten
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.values import Values
from ijepa_ds.errors import UserError
from ijepa_ds.evals import report, scenes, tasks
from ijepa_ds.evals.dense import pairs as dense
from ijepa_ds.evals.folders import Pair, limited, read_pair
from ijepa_ds.evals.options import apply_preset, check_used, dense_source, settings_of
from ijepa_ds.evals.presets import PRESETS, check_classes, published
from ijepa_ds.evals.ranks import World, agree, join, leave
from ijepa_ds.evals.readable import names_unreadable, without_unreadable
from ijepa_ds.evals.settings import Settings
from ijepa_ds.evals.subject import Subject, open_subject
from ijepa_ds.evals.tasks import evaluate_pair
from ijepa_ds.plotting.dense import Shown
from ijepa_ds.shown import is_text, shown

logger = logging.getLogger(__name__)
__all__ = ["Settings", "evaluate_folder", "evaluate_pair", "run"]


def evaluate_folder(encoder: nn.Module, train_source: str, test_source: str, settings: Settings) -> dict[str, Any]:
    """Score an encoder on a training and a test folder with one folder a class each.

    Args:
        encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`.
        train_source: images for training the classifiers.
        test_source: images for scoring.
        settings: of the evaluation.

    Returns:
        the result of `evaluate_pair`.

    Raises:
        ValueError: unusable folders, settings out of range, features that are not finite.
    """
    return evaluate_pair(encoder, read_pair(train_source, test_source), settings)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write the result to `args.out` and log a table; return exit code 0."""
    world = join()
    try:
        result, shown = _evaluate(args, world)
    finally:
        leave()
    if world.rank == 0:
        written = report.write_result(args.out, result, shown)
        logger.info("%s", report.table(result))
        logger.info("written: %s", ", ".join(str(path) for path in written))
    return 0


def _evaluate(args: argparse.Namespace, world: World) -> tuple[dict[str, Any], list[Shown]]:
    """The content of `result.json`, and images with predictions to draw."""
    start = time.perf_counter()
    check_used(args)
    if args.train is None:
        if args.task != "rank":
            raise UserError(f"ijepa-ds eval {args.task} needs --train, labelled images to learn from")
        args.train = args.test  # no task learns
    if not is_text(str(args.out)):
        raise ValueError(f"--out {shown(str(args.out))}: is not UTF-8, which TensorBoard requires; choose another name")
    apart = apply_preset(args)
    if args.preset and world.rank == 0:
        logger.info("%s: %s", args.preset, PRESETS[args.preset].layout)
    subject, others, settings, pair = agree(lambda: _prepare(args, world), world)
    if isinstance(pair, dense.DensePair):
        pair = dense.settle(pair, world)
    for line in pair.found if world.rank == 0 else ():
        logger.info("%s", line)
    measured, pair = _measure(subject, pair, settings, world)
    facts = subject.facts
    result: dict[str, Any] = {
        "task": args.task,
        "scores": measured["scores"],
        "baseline": None,
        "baselines": {},
        "unranked": [name for task in settings.tasks if not tasks.TASKS[task].percent for name in measured["scores"]],
        "chance": pair.chance,
        "published": published(args.preset, subject.model, settings.size) if args.preset else None,
        "details": measured["details"],
        "notes": [*apart, *subject.notes, *measured["notes"]],
        "checkpoint": subject.as_json(),
        "data": {
            "train": args.train,
            "test": args.test,
            "num_train": len(pair.train.labels),
            "num_test": len(pair.test.labels),
            "num_classes": len(pair.classes),
            "classes": list(pair.classes),
        },
    }
    if args.task in dense.TASKS:
        result["data"] |= dense_source(args, settings).plain()
    for other in others:
        again, _ = _measure(other, pair, settings, world)
        result["baselines"][other.name] = {key: again[key] for key in ("scores", "details")}
        result["notes"] += [f"{other.name}: {note}" for note in again["notes"] if note not in result["notes"]]
    if others:
        result["baseline"] = {"which": others[0].name} | result["baselines"][others[0].name]
    result |= {"settings": settings.plain(), "config": flatten(facts.config) if facts.config else None, "versions": versions()}
    result["versions"]["scikit-learn"] = sklearn.__version__
    result["seconds"] = measured["seconds"] | {"total": time.perf_counter() - start}
    result["ranks"] = world.size
    result["features_from_cache"] = measured["from_cache"]
    return result, measured["shown"]


def _measure(subject: Subject, pair: Pair, settings: Settings, world: World) -> tuple[dict[str, Any], Pair]:
    """Score an encoder; if an image cannot be read, all of them are left out first, in the result's pair too."""
    if subject.name == "pixels" and settings.layers == "last4":
        settings = replace(settings, layers="last")  # they have one layer
    try:
        return evaluate_pair(subject.encoder, pair, settings, subject.name, world), pair
    except ValueError as error:
        if not names_unreadable(error):
            raise
        logger.warning("%s: all images are decoded once, to leave such images out", error)
    pair = without_unreadable(pair, settings.threads, settings.max_pixels, world, settings.values)
    return evaluate_pair(subject.encoder, pair, settings, subject.name, world), pair


def _prepare(args: argparse.Namespace, world: World) -> tuple[Subject, list[Subject], Settings, Pair]:
    """Open and check all inputs before anything is computed."""
    subject = open_subject(args.checkpoint, args.which, args.heads, args.image_size)
    settings = settings_of(args, subject.facts, world.local_rank)
    if subject.facts.config:
        data = subject.facts.config.data
        settings = replace(settings, max_pixels=data.max_pixels, values=Values.of(data))
    _check_channels(subject, settings)
    settings.check()
    if "pixels" in (args.which, *args.baseline) and ({"attentive", "finetune"} & {*settings.tasks} or settings.tune_few):
        raise ValueError(f"pixels: {args.task} needs an encoder")
    others = [open_subject(args.checkpoint, which, args.heads, args.image_size) for which in args.baseline]
    options = ScanOptions(
        max_pixels=settings.max_pixels,
        tar_end=args.tar_end,
        class_level=args.class_level,
        image_column=args.image_column,
        label_column=args.label_column,
        values=settings.values,
    )
    if args.task in dense.TASKS:
        pair: Pair = dense.read_dense(args.train, args.test, dense_source(args, settings), settings.threads, world)
    elif args.task in scenes.TASKS:
        pair = scenes.read_scenes(args.task, args.train, args.test)
    else:
        pair = read_pair(args.train, args.test, options, labelled=args.task != "rank")
    pair = limited(pair, args.max_train, args.max_test, settings.seed)
    if args.preset:
        check_classes(args.preset, len(pair.classes))
    return subject, others, settings, pair


def _check_channels(subject: Subject, settings: Settings) -> None:
    """Refuse weights that do not say how their channels are read."""
    if settings.values.count != subject.facts.size.channels:
        raise ValueError(
            f"{subject.facts.source}: an encoder of {subject.facts.size.channels} channels, whose file does not say how images "
            "become channels: evaluate the run, or weights exported with --format safetensors"
        )
