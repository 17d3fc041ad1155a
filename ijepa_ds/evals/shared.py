"""What the tasks of an evaluation share: their result, features of both sets, and held-out images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.evals.session import Session
from ijepa_ds.evals.settings import LAYERS
from ijepa_ds.plotting.dense import Shown

_HOLDOUT = 0.1  # share of the training images


@dataclass
class Scores:
    """Result of a task: scores by name, details, notes for the reader, and images with predictions to draw."""

    scores: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shown: list[Shown] = field(default_factory=list)


def both_sets(session: Session, layers: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Features and labels of training and test images; None on ranks other than 0."""
    train, test = session.pooled("train", layers), session.pooled("test", layers)
    if train is None or test is None:
        return None
    return train, session.pair.train.labels, test, session.pair.test.labels


def one_layer(session: Session) -> int:
    """Layers whose features knn, lowshot, rank and L-BFGS take."""
    return LAYERS[session.settings.layers or "last"]


def held_out(images: int, seed: int) -> Tensor:
    """Mask [images] of a tenth of the training images, which are held out."""
    generator = torch.Generator().manual_seed(seed)
    apart = torch.zeros(images, dtype=torch.bool)
    apart[torch.randperm(images, generator=generator)[: max(1, round(_HOLDOUT * images))]] = True
    return apart


def chosen_on(what: str, holdout: Tensor | None) -> str:
    """A note: on which images `what` was chosen."""
    where = "the test images, as the paper does" if holdout is None else "a tenth of the training images, kept apart"
    return f"{what} was chosen on {where}"
