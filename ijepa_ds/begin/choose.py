"""The choices of a first configuration, from what the images are and how many GPUs there are.

They are starting points, taken from the published runs and from the runs of this repository; docs/begin.md has the reasons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

from ijepa_ds.errors import UserError

T = TypeVar("T")
FEWEST = 1_000  # images; below, nothing is learned that a test could tell
FEW = 20_000  # images; below, start from published weights instead
_CROPS = (224, 192, 160, 128, 96, 64, 48, 32)  # pixels
_PUBLISHED_GRID = 14  # patches along a side, from which the published masks leave contexts of a quarter and more
_MODELS = ((20_000, "tiny"), (200_000, "small"), (1_000_000, "base"), (10_000_000, "large"))  # images below -> model
_BATCHES = ((10_000, 64), (100_000, 256), (1_000_000, 1024))  # images below -> batch
_LARGEST_BATCH, _RATE = 2048, 1e-3  # of the published runs
_GROUP, _FEW_IMAGES = 128, 32  # default of masks.truncation_group; images of a micro-batch that keep a GPU busy
_ON_CPU, _CPU_RATE = 32, 3.5e-4  # images a batch, learning rate: those of configs/quickstart.yaml


@dataclass(frozen=True)
class Found:
    """What is known about images and machine.

    Attributes:
        images: number of readable images.
        shorter: median of the shorter sides, pixels.
        smallest: 5th percentile of the shorter sides.
        mean: of each channel, for pixels in 0 .. 1.
        std: the same.
        classes: number of classes; 0: none.
        gpus: GPUs a run will use; 0: CPU.
    """

    images: int
    shorter: float
    smallest: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    gpus: int


@dataclass(frozen=True)
class Choice:
    """A first configuration.

    Attributes:
        crop: pixels.
        patch: pixels.
        model: name of a size.
        batch: images of an update, over all ranks.
        epochs: passes over the images.
        lr: highest learning rate.
        stage: of ZeRO.
        published_masks: False: `masks.sampler: unbiased`, for small grids.
        warnings: for the user.
    """

    crop: int
    patch: int
    model: str
    batch: int
    epochs: int
    lr: float
    stage: int
    published_masks: bool
    warnings: tuple[str, ...]

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.crop // self.patch


def choose(found: Found) -> Choice:
    """Choose crop, patch, model, batch and length of a first run.

    Raises:
        UserError: images that are too few or too small.
    """
    if found.images < FEWEST:
        raise UserError(
            f"--data: {found.images:,} images; pretraining needs at least {FEWEST:,}, and more than {FEW:,} to be worth it. "
            "With fewer, fine-tune or probe published weights (docs/weights.md)"
        )
    if found.shorter < _CROPS[-1]:
        raise UserError(
            f"--data: the images' shorter side is {found.shorter:g} pixels (median), at least {_CROPS[-1]} are needed"
        )
    crop = next(side for side in _CROPS if side <= found.shorter)
    patch = _patch(crop, found.gpus)
    batch = _below(_BATCHES, found.images, _LARGEST_BATCH) if found.gpus else _ON_CPU
    batch = _share(batch, found.gpus) * max(1, found.gpus)
    model = _below(_MODELS, found.images, "huge") if found.gpus else "tiny"
    return Choice(
        crop=crop,
        patch=patch,
        model=model,
        batch=batch,
        epochs=_epochs(found.images, batch),
        lr=float(f"{_RATE * math.sqrt(batch / _LARGEST_BATCH):.1e}") if found.gpus else _CPU_RATE,
        stage=2 if model == "huge" else 1,
        published_masks=crop // patch >= _PUBLISHED_GRID,
        warnings=tuple(_warnings(found, crop)),
    )


def _below(steps: tuple[tuple[int, T], ...], images: int, most: T) -> T:
    return next((value for limit, value in steps if images < limit), most)


def _share(batch: int, gpus: int) -> int:
    """Images of a GPU: about its part of the batch, in numbers that large micro-batches divide (`masks.truncation_group`)."""
    share = math.ceil(batch / max(1, gpus))
    if batch <= _GROUP:  # one group
        return share
    if share < _FEW_IMAGES:
        return int(2 ** round(math.log2(share)))
    step = _GROUP if share >= 2 * _GROUP else _FEW_IMAGES
    return step * round(share / step)


def _patch(crop: int, gpus: int) -> int:
    """A patch that leaves 8 to 16 along a side."""
    if crop >= 160:
        return 16
    if crop >= 96 or not gpus:
        return 8 if crop >= 64 else 4
    return 4


def _epochs(images: int, batch: int) -> int:
    """300, as published; more for small sets, so that a run has some 20,000 updates, but at most 800."""
    updates = images // batch
    return min(800, max(300, math.ceil(20_000 / max(1, updates))))


def _warnings(found: Found, crop: int) -> list[str]:
    said = []
    if found.images < FEW:
        said.append(
            f"{found.images:,} images are few for training from scratch: compare with published weights on your task first "
            "(ijepa-ds eval, model.init_from; docs/weights.md)"
        )
    if found.smallest < crop:
        said.append(f"5 % of the images are smaller than the crop of {crop} pixels and will be enlarged")
    if min(found.std) < 0.05:
        said.append(
            f"the pixels' deviation is {min(found.std):.3f}: images of low contrast; look at stats.png, and watch the rank of "
            "the features in TensorBoard"
        )
    if not found.gpus:
        said.append("no GPU: a small network, to try the commands; give --gpus N for a machine that has some")
    if not found.classes:
        said.append("no class folders: training needs none, but `ijepa-ds eval` needs labelled images")
    return said
