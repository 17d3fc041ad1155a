"""The tasks of `ijepa-ds eval`. Every rank runs a task; rank 0 computes the scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ijepa_ds.evals import rank, sweep
from ijepa_ds.evals.dense.heads import add_over_ranks
from ijepa_ds.evals.dense.tasks import depth, segment
from ijepa_ds.evals.folders import Pair
from ijepa_ds.evals.probes import k_nearest, linear_heads, on_scenes, swept_by
from ijepa_ds.evals.ranks import ALONE, World
from ijepa_ds.evals.session import VIEW_SCALE, Session
from ijepa_ds.evals.settings import Settings
from ijepa_ds.evals.shared import Scores, one_layer
from ijepa_ds.evals.tuned import attentive_heads, fine_tuned, low_shot


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
        `scores` {"20-NN": percent, ..., "linear": percent}; `details`; `notes`; `seconds` by part; `from_cache`, the sets whose
        features were computed earlier; `shown`, images with predictions of segment and depth. Scores are empty on ranks
        other than 0.

    Raises:
        ValueError: settings out of range, or features that are not finite.
    """
    settings.check()
    sweep.check_choices("tasks", settings.tasks, TASKS)
    attentive = [f"{task} with --pool attentive" for task in settings.tasks if settings.pool == "attentive"]
    alone = [task for task in settings.tasks if TASKS[task].one_rank] + ["lowshot"] * settings.tune_few + attentive
    if alone and world.size > 1:
        raise ValueError(f"{alone[0]} trains on one process: start it without the launcher, or with --num_gpus 1")
    session, whole = Session(encoder, pair, settings, label, world), Scores(notes=list(pair.notes))
    needs_four = settings.layers == "last4" or ({"count", "distance"} & {*settings.tasks} and settings.layers is None)
    if {"linear"} & {*settings.tasks} and swept_by(settings) and settings.layers is None:
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
        whole.shown += found.shown
        whole.notes += [note for note in found.notes if note not in whole.notes]
        seconds[task] = time.perf_counter() - start
    whole.notes += filled_note(session)
    result = {"scores": whole.scores, "details": whole.details, "notes": whole.notes, "seconds": seconds}
    return result | {"from_cache": session.from_cache, "shown": whole.shown}


def filled_note(session: Session) -> list[str]:
    """A note about values without data that were filled, of the images of all ranks; every rank calls it."""
    if session.settings.values.plain:
        return []
    counts = torch.tensor([len(session.filled), sum(session.filled.values())])
    images, values = add_over_ranks(counts, session.world).tolist()
    cached = "; images whose features were in the cache are not counted" if session.from_cache else ""
    return [f"{images:,} images have {values:,} values without data, filled with data.mean{cached}"] if images else []


def _rank(session: Session) -> Scores:
    settings, layers = session.settings, one_layer(session)
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


def _pooled_by_scenes(settings: Settings) -> tuple[str, ...]:
    return () if settings.pool == "attentive" else ("train", "test")


TASKS = {
    "knn": Task(k_nearest),
    "linear": Task(linear_heads, pooled=_pooled_by_linear),
    "attentive": Task(attentive_heads, pooled=_nothing, one_rank=True),
    "lowshot": Task(low_shot),
    "finetune": Task(fine_tuned, pooled=_nothing, one_rank=True),
    "count": Task(lambda session: on_scenes(session, "count"), pooled=_pooled_by_scenes),
    "distance": Task(lambda session: on_scenes(session, "distance"), pooled=_pooled_by_scenes),
    "segment": Task(segment, pooled=_nothing),
    "depth": Task(depth, pooled=_nothing, percent=False),
    "rank": Task(_rank, pooled=lambda settings: ("test",), percent=False),
}
