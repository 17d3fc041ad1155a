"""The tasks `segment` and `depth`: heads on frozen patch tokens, scored at the size of the labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.data.transforms import joined, read_layers
from ijepa_ds.errors import UserError
from ijepa_ds.evals.dense.heads import (
    TrainingSet,
    add_over_ranks,
    cross_entropy,
    fill_bank,
    log_depth,
    train_head,
)  # fmt: skip
from ijepa_ds.evals.dense.measures import Confusion, DepthErrors
from ijepa_ds.evals.dense.pairs import DenseImages, DensePair
from ijepa_ds.evals.dense.recipe import Recipe
from ijepa_ds.evals.dense.tokens import ComputedTokens, Tokens, of_patches
from ijepa_ds.evals.dense.windows import enlarge, merge
from ijepa_ds.evals.ranks import agree
from ijepa_ds.evals.session import Session
from ijepa_ds.evals.shared import Scores
from ijepa_ds.plotting.dense import Shown
from ijepa_ds.terminal import track

SHOWN = 4  # images in a picture, and as many that have the worst scores

Predict = Callable[[Tensor, int], Tensor]
"""Tokens [T, N, D], side S -> maps [T, C, S, S]."""


def segment(session: Session) -> Scores:
    """k-NN and a linear head on patch tokens; mean intersection over union and pixel accuracy of each."""
    pair, s = _pair(session), session.settings
    training = _training(session)
    classes = len(pair.names)
    bank = fill_bank(training, classes, s.bank, s.seed, _label(session, "bank of patches"))
    linear = train_head(
        training, classes, torch.zeros(classes), cross_entropy, _recipe(session), _label(session, "linear head"), session.beat
    )
    tables = {"k-NN": Confusion(classes), "linear": Confusion(classes)}

    def add(truth: np.ndarray, maps: dict[str, Tensor]) -> float:
        labels = torch.from_numpy(truth)
        predicted = {name: found.argmax(0).cpu() for name, found in maps.items()}
        for name, found in predicted.items():
            tables[name].add(labels, found)
        valid = labels >= 0
        return 100 * float((predicted["linear"] == labels)[valid].double().mean()) if bool(valid.any()) else 100.0

    found = Scores()
    found.shown = _score(session, {"k-NN": bank.maps, "linear": linear.maps}, add)
    for name, table in tables.items():
        add_over_ranks(table.counts, session.world)
        _check_scored(int(table.counts.sum()))
        found.scores |= {f"{score}, {name}": value for score, value in table.scores().items()}
        iou = table.iou().tolist()
        found.details[f"IoU, {name}"] = {
            label: None if value != value else value for label, value in zip(pair.names, iou, strict=True)
        }
    absent = [label for label, value in found.details["IoU, linear"].items() if value is None]
    if absent:
        found.notes.append(f"mIoU leaves out classes that no test pixel has or gets: {', '.join(absent[:8])}")
    found.details["width"] = len(training.mean)
    return found if session.is_rank_zero else Scores()


def depth(session: Session) -> Scores:
    """A linear head on patch tokens that gives the logarithm of the depth; RMSE, AbsRel and delta1."""
    training = _training(session)
    sums = torch.zeros(2, dtype=torch.float64)
    mine, label = range(len(training.mine)), _label(session, "mean depth")
    for position in track(mine, label, "images"):
        for _, depths in training.images([position]):
            valid = depths[depths > 0].double()
            sums += torch.tensor([float(valid.log().sum()), float(len(valid))])
    add_over_ranks(sums, session.world)
    if not sums[1]:
        raise UserError("no pixel of the chosen training images has a depth: choose more images (--max-train, eval.max_train)")
    start = (sums[:1] / sums[1]).float()
    head = train_head(training, 1, start, log_depth, _recipe(session), _label(session, "linear head"), session.beat)
    errors = DepthErrors()

    def add(truth: np.ndarray, maps: dict[str, Tensor]) -> float:
        depths, predicted = torch.from_numpy(truth), maps["linear"][0].exp().cpu()
        own = DepthErrors()
        own.add(depths, predicted)
        errors.sums += own.sums
        return own.scores()["delta1"] if own.sums[0] else 100.0

    found = Scores()
    found.shown = _score(session, {"linear": head.maps}, add)
    add_over_ranks(errors.sums, session.world)
    _check_scored(int(errors.sums[0]))
    found.scores = errors.scores()
    found.details["width"] = len(training.mean)
    return found if session.is_rank_zero else Scores()


def _check_scored(pixels: int) -> None:
    if not pixels:
        raise UserError("no pixel of the scored test images has a label: raise --max-test, or look at --ignore")


def _pair(session: Session) -> DensePair:
    assert isinstance(session.pair, DensePair)
    return session.pair


def _label(session: Session, what: str) -> str | None:
    return f"{session.label}, {what}" if session.is_rank_zero and session.label else None


def _recipe(session: Session) -> Recipe:
    return replace(session.settings.dense_recipe, seed=session.settings.seed)


def _tokens(session: Session, images: DenseImages) -> Tokens:
    reading, settings = _pair(session).reading, session.settings
    if session.known is not None:
        return ComputedTokens(session.known, images, reading, settings)
    tokens = Tokens(of_patches(session.encoder), images, reading, settings, session.label if session.is_rank_zero else None)
    tokens.filled = session.filled
    return tokens


def _training(session: Session) -> TrainingSet:
    images = _pair(session).train
    assert isinstance(images, DenseImages)
    total = len(images.labels)
    return TrainingSet(_tokens(session, images.subset(session.world.share(total))), total, session.world)


def _score(session: Session, methods: dict[str, Predict], add: Callable[[np.ndarray, dict[str, Tensor]], float]) -> list[Shown]:
    """Predict all test images of this rank's share and add them up.

    Args:
        session: of the evaluation.
        methods: maps of windows from their tokens, by name.
        add: called with the truth [H, W] and the maps [C, H, W] of each method; returns a score in percent.

    Returns:
        on rank 0, images to show: some at equal distances, and those with the worst scores.
    """
    images = _pair(session).test
    assert isinstance(images, DenseImages)
    total, world = len(images.labels), session.world
    mine = world.share(total)
    tokens = _tokens(session, images)
    scores = torch.zeros(total, dtype=torch.float64)

    def predict(position: int) -> tuple[np.ndarray, dict[str, Tensor]]:
        of_windows, boxes, shape = tokens.of_image(position)
        truth = tokens.truth(position)
        maps = {}
        for name, method in methods.items():
            whole = merge(method(of_windows, session.settings.size), boxes, shape)
            maps[name] = enlarge(whole[None], *truth.shape)[0]
        return truth, maps

    def work() -> None:
        for position in track(mine, _label(session, "test images"), "images"):
            scores[position] = add(*predict(position))
            session.beat()

    with torch.no_grad():
        agree(work, world)
    add_over_ranks(scores, world)
    if not session.is_rank_zero or session.known is not None:  # rank 0 has not the tokens of the others' images
        return []
    some = sorted({number * total // SHOWN for number in range(SHOWN)})
    worst = [int(i) for i in scores.argsort() if int(i) not in some][:SHOWN]
    shown = []
    for position in [*some, *worst]:
        with torch.no_grad():
            predicted = {name: _final(found) for name, found in predict(position)[1].items()}
        values = session.settings.values
        picture = values.pictured(joined(read_layers(str(images.paths[position]), session.settings.max_pixels, values)))
        shown.append(Shown(picture, tokens.truth(position), predicted, float(scores[position]), worst=position in worst))
    return shown


def _final(maps: Tensor) -> np.ndarray:
    """The prediction of a method's maps [C, H, W]: the best class, or the depth."""
    if len(maps) == 1:
        return maps[0].exp().cpu().numpy()
    return maps.argmax(0).to(torch.int16).cpu().numpy()
