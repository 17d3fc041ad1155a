"""Tasks that train a network or choose few images: low-shot, fine-tuning and attentive heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ijepa_ds.data.reading import ImageFile
from ijepa_ds.evals import attentive, finetune, lowshot
from ijepa_ds.evals.augmented import WITHOUT_COLOURS
from ijepa_ds.evals.folders import Labelled
from ijepa_ds.evals.session import Session
from ijepa_ds.evals.settings import Settings
from ijepa_ds.evals.shared import Scores, both_sets, chosen_on, held_out, one_layer

_CHOOSE = 5000  # maximum number of images to choose C on


def low_shot(session: Session) -> Scores:
    """Logistic regression on few images a class, and fine-tuning on them; averages over draws."""
    settings, found = session.settings, Scores()
    sets = both_sets(session, one_layer(session))
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
        progress=f"{session.label}, fine-tuning", values=s.values, max_pixels=s.max_pixels, filled=session.filled,
    )  # fmt: skip


def fine_tuned(session: Session) -> Scores:
    """Fine-tuning of the encoder on all labels."""
    train = session.pair.train
    one = next(session.tokens("train", torch.zeros(1, dtype=torch.int64)))
    detail = _fine_tune(session, train, one.shape[2], session.settings.finetune_recipe)
    notes = [] if session.settings.values.plain else [WITHOUT_COLOURS]
    return Scores({"fine-tuned": detail["top1"]}, {"fine-tuned": detail}, notes)


def attentive_heads(session: Session, mirrored: bool = False) -> Scores:
    """Attentive heads on the tokens of all images, with the mirror images of the training images too; the best one counts."""
    pair, s = session.pair, session.settings
    one = next(session.tokens("train", torch.zeros(1, dtype=torch.int64)))  # [1, N, D]
    totals = {"train": len(pair.train.labels) * (1 + mirrored), "test": len(pair.test.labels)}
    fits = 4 * one.numel() * sum(totals.values()) <= s.token_gib * 2**30
    kept = {part: _kept_tokens(session, part, total) for part, total in totals.items()} if fits else {}
    holdout = held_out(len(pair.train.labels), s.seed) if s.select == "holdout" else None

    def batches_of(part: str, among: Tensor) -> attentive.Batches:
        """Batches of the images at the positions `among`."""
        if part in kept:
            return lambda order: (kept[part][rows] for rows in among[order].split(s.attentive_recipe.batch_size))
        return lambda order: session.tokens(part, among[order])

    train = torch.arange(len(pair.train.labels)) if holdout is None else (~holdout).nonzero()[:, 0]
    train = torch.cat([train, train + len(pair.train.labels)]) if mirrored else train
    choose = None if holdout is None else holdout.nonzero()[:, 0]
    accuracies = attentive.evaluate(
        batches_of("train", train), pair.train.labels[train % len(pair.train.labels)],
        batches_of("test", torch.arange(len(pair.test.labels))), pair.test.labels, one.shape[2],
        replace(s.attentive_recipe, seed=s.seed),
        choose_batches=None if choose is None else batches_of("train", choose),
        choose_labels=None if choose is None else pair.train.labels[choose],
        device=s.device, progress=f"{session.label}, attentive heads",
    )  # fmt: skip
    best = max(accuracies["choose"], key=lambda name: accuracies["choose"][name])
    note = chosen_on(f"attentive: the best of {len(accuracies['test'])} heads", holdout)
    return Scores({"attentive": accuracies["test"][best]}, {"attentive": accuracies["test"]}, [note])


def _kept_tokens(session: Session, part: str, total: int) -> Tensor:
    return torch.cat([tokens.cpu() for tokens in session.tokens(part, torch.arange(total))])
