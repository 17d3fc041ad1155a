"""The tasks of `ijepa-ds eval`. Every rank runs a task; rank 0 computes the scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.data.crops import flips
from ijepa_ds.data.reading import ImageFile
from ijepa_ds.evals import attentive, finetune, knn, linear, lowshot, rank, sweep
from ijepa_ds.evals.folders import Labelled, Pair
from ijepa_ds.evals.ranks import ALONE, World
from ijepa_ds.evals.session import CROP_SCALE, VIEW_SCALE, Session
from ijepa_ds.evals.settings import LAYERS, Settings

_HOLDOUT = 0.1  # share of the training images
_CHOOSE = 5000  # maximum number of images to choose C on


@dataclass
class Scores:
    """Result of a task: scores by name, details, and notes for the reader."""

    scores: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def evaluate_pair(
    encoder: nn.Module, pair: Pair, settings: Settings, label: str = "encoder", world: World = ALONE
) -> dict[str, Any]:
    """Score an encoder on training and test images.

    Args:
        encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`.
        pair: the images.
        settings: of the evaluation.
        label: name of the encoder in progress bars.
        world: the ranks that share the images; every rank calls this function.

    Returns:
        `scores` {"20-NN": percent, ..., "linear": percent}; `details`; `notes`; `seconds` by part. Scores are empty on ranks
        other than 0.

    Raises:
        ValueError: settings out of range, or features that are not finite.
    """
    settings.check()
    sweep.check_choices("tasks", settings.tasks, TASKS)
    alone = [task for task in settings.tasks if TASKS[task].one_rank] + ["lowshot"] * settings.tune_few
    if alone and world.size > 1:
        raise ValueError(f"{alone[0]} trains on one process: start it without the launcher, or with --num_gpus 1")
    session, whole = Session(encoder, pair, settings, label, world), Scores(notes=list(pair.notes))
    needs_four = settings.layers == "last4" or ({"count", "distance"} & {*settings.tasks} and settings.layers is None)
    if {"linear"} & {*settings.tasks} and _sweeps(settings) and settings.layers is None:
        needs_four = True
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    parts = {part for task in settings.tasks for part in TASKS[task].pooled(settings)}
    if parts:  # one pass for all tasks
        layers = 4 if needs_four and session.layers >= 4 else 1
        for part in sorted(parts, reverse=True):
            session.pooled(part, layers)
        seconds["features"] = time.perf_counter() - start
    for task in settings.tasks:
        start = time.perf_counter()
        found = TASKS[task].run(session)
        whole.scores |= found.scores
        whole.details |= found.details
        whole.notes += [note for note in found.notes if note not in whole.notes]
        seconds[task] = time.perf_counter() - start
    return {"scores": whole.scores, "details": whole.details, "notes": whole.notes, "seconds": seconds}


def _sets(session: Session, layers: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Features and labels of training and test images; None on ranks other than 0."""
    train, test = session.pooled("train", layers), session.pooled("test", layers)
    if train is None or test is None:
        return None
    return train, session.pair.train.labels, test, session.pair.test.labels


def _one_layer(session: Session) -> int:
    return LAYERS[session.settings.layers or "last"]


def _knn(session: Session) -> Scores:
    settings, found = session.settings, Scores()
    sets = _sets(session, _one_layer(session))
    n = len(session.pair.train.labels)
    k = [count for count in settings.k if count <= n]
    if not k:
        raise ValueError(f"k: {list(settings.k)} are all above the {n} training images")
    if len(k) < len(settings.k):
        left_out = ", ".join(str(count) for count in settings.k if count not in k)
        found.notes.append(f"k = {left_out} left out: above the {n} training images")
    if sets is None:
        return found
    placed = [part.to(settings.device) for part in sets]
    for temperature in settings.temperatures:
        scores = knn.evaluate(*placed, k=k, temperature=temperature)
        several = f" T={temperature:g}" if len(settings.temperatures) > 1 else ""
        found.scores |= {name + several: score for name, score in scores.items()}
    found.details["width"] = sets[0].shape[1]
    return found


def _sweeps(settings: Settings) -> list[str]:
    return [solver for solver in settings.solvers if solver in sweep.OPTIMIZERS]


def _linear(session: Session) -> Scores:
    settings, found = session.settings, Scores()
    if "lbfgs" in settings.solvers:
        sets = _sets(session, _one_layer(session))
        if sets is not None:
            detail = linear.evaluate(*sets, c=settings.c, max_iterations=settings.max_iterations)
            found.details |= {"linear": detail, "width": sets[0].shape[1]}
            found.scores["linear"] = detail["top1"]
            if not detail["converged"]:
                found.notes.append(f"linear: not converged after {settings.max_iterations} iterations, the score is not final")
    if _sweeps(settings):
        accuracies = _run_sweep(session, found, mirrored=False)
        for solver in _sweeps(settings) if accuracies else ():
            head = sweep.best(accuracies["choose"], solver)
            found.scores[f"linear {solver.upper()}"] = accuracies["test"][head]
    return found


def _scenes(session: Session, name: str) -> Scores:
    """The linear probe on scenes: each epoch takes every image as it is or mirrored, at random."""
    settings, found = session.settings, Scores()
    recipe = replace(settings.recipe, optimizers=_sweeps(settings) or settings.recipe.optimizers)
    session.settings = replace(settings, recipe=recipe, solvers=tuple(recipe.optimizers))
    accuracies = _run_sweep(session, found, mirrored=True)
    session.settings = settings
    if accuracies:
        head = max(accuracies["choose"], key=lambda head: accuracies["choose"][head])
        found.scores[name] = accuracies["test"][head]
        found.details = {f"{name} {key}" if key == "sweep" else key: value for key, value in found.details.items()}
    return found


def _run_sweep(session: Session, found: Scores, mirrored: bool) -> dict[str, dict[sweep.Head, float]]:
    """Train the sweep; accuracies of all heads on the test images and on those to choose on; empty on other ranks."""
    settings = session.settings
    layers = [settings.layers] if settings.layers else list(settings.recipe.layers)
    if "last4" in layers and session.layers < 4:
        if layers == ["last4"]:
            raise ValueError(f"--layers last4: this encoder gives {session.layers} layers")
        layers.remove("last4")
        found.notes.append(f"the last four layers left out: this encoder gives {session.layers}")
    recipe = replace(settings.recipe, layers=layers, optimizers=_sweeps(settings), seed=settings.seed)
    depth = 4 if "last4" in layers else 1
    labels = session.pair.train.labels
    holdout = _holdout(len(labels), settings.seed) if settings.select == "holdout" else None
    train = session.pooled("train", depth) if not settings.augment or holdout is not None else None
    mirror = session.pooled("train", depth, True) if mirrored else None
    test = session.pooled("test", depth)

    def of_epoch(epoch: int) -> Tensor:
        features = train
        if settings.augment:
            features = session.cropped("train", range(len(labels)), epoch, depth, CROP_SCALE)
        assert features is not None
        if mirror is not None:
            flipped = flips(np.arange(len(labels), dtype=np.int64) + epoch * len(labels), settings.seed)
            features = torch.where(torch.from_numpy(flipped)[:, None], mirror, features)
        return features if holdout is None else features[~holdout]

    if test is None:
        for epoch in range(recipe.epochs if settings.augment else 0):
            session.cropped("train", range(len(labels)), epoch, depth, CROP_SCALE)
        return {}
    width = test.shape[1] // depth
    kept = labels if holdout is None else labels[~holdout]
    trained = sweep.train(
        of_epoch, kept, width, recipe, device=settings.device, progress=f"{session.label}, {len(sweep.all_heads(recipe))} heads"
    )
    accuracies = {"test": trained.accuracies(test, session.pair.test.labels)}
    accuracies["choose"] = accuracies["test"]
    if holdout is not None:
        assert train is not None
        accuracies["choose"] = trained.accuracies(train[holdout], labels[holdout])
    found.notes.append(_chosen_on(f"the best of {len(accuracies['test'])} heads", holdout))
    found.details["sweep"] = {str(head): score for head, score in accuracies["test"].items()}
    found.details["width"] = width
    return accuracies


def _holdout(images: int, seed: int) -> Tensor:
    """Mask [images] of a tenth of the training images, which are held out."""
    generator = torch.Generator().manual_seed(seed)
    apart = torch.zeros(images, dtype=torch.bool)
    apart[torch.randperm(images, generator=generator)[: max(1, round(_HOLDOUT * images))]] = True
    return apart


def _chosen_on(what: str, holdout: Tensor | None) -> str:
    where = "the test images, as the paper does" if holdout is None else "a tenth of the training images, kept apart"
    return f"{what} was chosen on {where}"


def _lowshot(session: Session) -> Scores:
    settings, found = session.settings, Scores()
    sets = _sets(session, _one_layer(session))
    if sets is None:
        return found
    train, labels, test, targets = sets
    tops: dict[str, list[float]] = {}
    for draw, few in enumerate(few_images(session.pair.train, settings, session.pair.classes)):
        rest = torch.ones(len(labels), dtype=torch.bool)
        rest[few] = False
        others = torch.randperm(len(labels), generator=torch.Generator().manual_seed(settings.seed + draw))
        others = others[rest[others]][:_CHOOSE]
        choose = (train[others], labels[others]) if len(others) else (None, None)
        path = settings.c_path if settings.l2 is None else (1 / settings.l2,)
        detail = lowshot.evaluate(
            train[few],
            labels[few],
            test,
            targets,
            choose_features=choose[0],
            choose_labels=choose[1],
            c=path,
            rows=settings.normalise == "rows",
        )
        found.details[f"low-shot {draw}"] = detail | {"images": float(len(few))}
        tops.setdefault("low-shot", []).append(detail["top1"])
        if detail["chosen_on_test"] and len(path) > 1:
            found.notes.append("low-shot: C was chosen on the test images: no other training images are left")
        if settings.tune_few:
            images = Labelled([session.pair.train.paths[int(i)] for i in few], labels[few])
            detail = _fine_tune(session, images, train.shape[1], settings.few_recipe)
            found.details[f"low-shot fine-tuned {draw}"] = detail
            tops.setdefault("low-shot fine-tuned", []).append(detail["top1"])
    few_per_class = labels.bincount()[labels.unique()].min()
    if settings.list_file is None and int(few_per_class) < settings.per_class:
        found.notes.append(f"low-shot: a class has only {int(few_per_class)} training images, all of them were taken")
    for name, values in tops.items():
        found.scores[name] = sum(values) / len(values)
        if len(values) > 1:
            found.details[f"{name}, deviation over draws"] = float(torch.tensor(values).std())
    return found


def few_images(train: Labelled, settings: Settings, classes: Sequence[str]) -> list[Tensor]:
    """Positions of the few labelled images, one tensor per draw."""
    if settings.list_file is None:
        return [lowshot.draw_per_class(train.labels, settings.per_class, settings.seed + i) for i in range(settings.draws)]
    return [lowshot.find_listed(Path(settings.list_file), list_names(train, classes))]


def list_names(train: Labelled, classes: Sequence[str]) -> list[str]:
    """The names by which a list may call the images: of an image in no folder, its class before its file name."""
    names = []
    for i, label in enumerate(train.labels.tolist()):
        item = train.paths[i]
        name = item.name if isinstance(item, ImageFile) else str(item)
        names.append(name if "/" in name else f"{classes[label]}/{name}")
    return names


def _fine_tune(session: Session, train: Labelled, width: int, recipe: finetune.Recipe) -> dict[str, float]:
    s, test = session.settings, session.pair.test
    return finetune.evaluate(
        session.encoder, train.paths, train.labels, test.paths, test.labels, size=s.size, width=width, mean=s.mean, std=s.std,
        recipe=replace(recipe, seed=s.seed), workers=s.threads, device=s.device, dtype=s.dtype,
        progress=f"{session.label}, fine-tuning",
    )  # fmt: skip


def _finetune(session: Session) -> Scores:
    train = session.pair.train
    one = next(session.tokens("train", torch.zeros(1, dtype=torch.int64)))
    detail = _fine_tune(session, train, one.shape[2], session.settings.finetune_recipe)
    return Scores({"fine-tuned": detail["top1"]}, {"fine-tuned": detail})


def _attentive(session: Session) -> Scores:
    pair, s = session.pair, session.settings
    one = next(session.tokens("train", torch.zeros(1, dtype=torch.int64)))  # [1, N, D]
    images = len(pair.train.labels) + len(pair.test.labels)
    fits = 4 * one.numel() * images <= s.token_gib * 2**30
    kept = {part: _kept_tokens(session, part) for part in ("train", "test")} if fits else {}
    holdout = _holdout(len(pair.train.labels), s.seed) if s.select == "holdout" else None

    def batches_of(part: str, among: Tensor) -> attentive.Batches:
        """Batches of the images at the positions `among`."""
        if part in kept:
            return lambda order: (kept[part][rows] for rows in among[order].split(s.attentive_recipe.batch_size))
        return lambda order: session.tokens(part, among[order])

    train = torch.arange(len(pair.train.labels)) if holdout is None else (~holdout).nonzero()[:, 0]
    choose = None if holdout is None else holdout.nonzero()[:, 0]
    accuracies = attentive.evaluate(
        batches_of("train", train), pair.train.labels[train],
        batches_of("test", torch.arange(len(pair.test.labels))), pair.test.labels, one.shape[2],
        replace(s.attentive_recipe, seed=s.seed),
        choose_batches=None if choose is None else batches_of("train", choose),
        choose_labels=None if choose is None else pair.train.labels[choose],
        device=s.device, progress=f"{session.label}, attentive heads",
    )  # fmt: skip
    best = max(accuracies["choose"], key=lambda name: accuracies["choose"][name])
    note = _chosen_on(f"attentive: the best of {len(accuracies['test'])} heads", holdout)
    return Scores({"attentive": accuracies["test"][best]}, {"attentive": accuracies["test"]}, [note])


def _kept_tokens(session: Session, part: str) -> Tensor:
    total = len(session._part(part).labels)
    return torch.cat([tokens.cpu() for tokens in session.tokens(part, torch.arange(total))])


def _rank(session: Session) -> Scores:
    settings, layers = session.settings, _one_layer(session)
    features = session.pooled("test", layers)
    positions = range(min(settings.view_images, len(session.pair.test.labels)))
    views = [session.cropped("test", positions, view, layers, VIEW_SCALE) for view in range(settings.views)]
    if features is None:
        return Scores()
    found = Scores(rank_scores(features, torch.stack(views, dim=1)))  # type: ignore[arg-type]
    found.details["spectrum"] = rank.spectrum(features)
    found.details["width"] = features.shape[1]
    found.notes.append(
        f"LiDAR: {len(positions)} images, {settings.views} random crops of each (30 % of the area and more), flipped or not"
    )
    return found


def rank_scores(features: Tensor, views: Tensor | None = None) -> dict[str, float]:
    """`rank.evaluate` with the score names of tables."""
    names = {"rankme": "RankMe", "lidar": "LiDAR", "top_share": "variance in 1st direction, %"}
    return {names[name]: value for name, value in rank.evaluate(features, views).items()}


@dataclass(frozen=True)
class Task:
    """One task of `ijepa-ds eval`.

    Attributes:
        run: called by every rank.
        pooled: the sets of which it needs average-pooled features, which all tasks share.
        percent: its scores are percent of the test images.
        one_rank: it trains on one process.
    """

    run: Callable[[Session], Scores]
    pooled: Callable[[Settings], tuple[str, ...]] = lambda settings: ("train", "test")
    percent: bool = True
    one_rank: bool = False


def _nothing(settings: Settings) -> tuple[str, ...]:
    return ()


def _pooled_by_linear(settings: Settings) -> tuple[str, ...]:
    """Heads on augmented images never see the features of the whole training images; those of ViT-H on ImageNet take 26 GB."""
    unused = settings.augment and "lbfgs" not in settings.solvers and settings.select == "test"
    return ("test",) if unused else ("train", "test")


TASKS = {
    "knn": Task(_knn),
    "linear": Task(_linear, pooled=_pooled_by_linear),
    "attentive": Task(_attentive, pooled=_nothing, one_rank=True),
    "lowshot": Task(_lowshot),
    "finetune": Task(_finetune, pooled=_nothing, one_rank=True),
    "count": Task(lambda session: _scenes(session, "count")),
    "distance": Task(lambda session: _scenes(session, "distance")),
    "rank": Task(_rank, pooled=lambda settings: ("test",), percent=False),
}
