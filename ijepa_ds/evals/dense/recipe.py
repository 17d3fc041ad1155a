"""Settings of the linear head on patch tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the linear head is trained, by AdamW with a cosine schedule on standardised tokens.

    Attributes:
        lr: first learning rate.
        weight_decay: of the matrix.
        epochs: passes over the images.
        batch_size: images an update.
        seed: of the order of images.
    """

    lr: float = 1e-2
    weight_decay: float = 1e-4
    epochs: int = 20
    batch_size: int = 16
    seed: int = 0
