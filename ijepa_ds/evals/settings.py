"""Settings of an evaluation, as written to `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ijepa_ds.data.pillow import MAX_PIXELS
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.evals import attentive, finetune, lowshot, sweep
from ijepa_ds.evals.dense.recipe import Recipe as DenseRecipe
from ijepa_ds.options.evals import NEIGHBOURS, NORMALISE, POOLS, SELECT, SOLVERS

ALL = ("knn", "linear")  # of `ijepa-ds eval all`: the quick protocol for following and comparing runs
LAYERS = {"last": 1, "last4": 4}
CELLS = {"mean": 1, "grid4": 4}  # parts along a side of the image whose tokens are averaged
FRAMES = ("crop", "whole")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FEW = finetune.Recipe(batch_size=512, lr=3e-5, weight_decay=0.05, mixup=0.0, cutmix=0.0, drop_path=0.0)  # paper: 1 %, L/16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of an evaluation.

    Attributes:
        size: side of the images in pixels.
        mean: per channel, for pixels in 0 .. 1, as in training.
        std: per channel.
        frame: of test images and images that are not augmented: `crop`, the central square; `whole`, resized to a square.
        tasks: keys of `tasks.TASKS`.
        pool: what heads of count and distance see: key of `CELLS`, or `attentive`: a head attends to all tokens.
        layers: `last` or `last4`: features of knn, lowshot, rank and the sweep; None: `last`, and both in the sweep.
        k: neighbours; values above the number of training images are skipped with a note.
        temperature: of the k-NN vote; one or several.
        solvers: of the linear classifier, from `SOLVERS`.
        c: inverse regularisation of the L-BFGS classifier.
        max_iterations: of L-BFGS.
        recipe: of the SGD and LARS sweep.
        augment: train the sweep on new random crops and flips each epoch instead of cached features.
        select: images to choose the best head on: `test`, as in the paper, or a `holdout` of the training images.
        per_class: images per class for lowshot.
        list_file: file with the names of lowshot's images, instead of `per_class`.
        draws: random choices of lowshot's images; scores are averaged.
        c_path: inverse regularisations for lowshot.
        l2: one penalty, instead of `c_path`: l2 / (2 n) |W|^2 on the mean loss of the n images (C = 1 / l2), as in MSN.
        normalise: of lowshot's features: `columns` to mean 0 and deviation 1; `rows` to mean 0 and length 1, without bias.
        tune_few: also fine-tune on lowshot's images.
        attentive_recipe: of the attentive heads.
        finetune_recipe: of fine-tuning on all labels.
        few_recipe: of fine-tuning on lowshot's images.
        token_gib: up to this size tokens are cached in memory; above it they are computed each epoch.
        bank: labelled patches for k-NN segmentation, about.
        dense_recipe: of the linear head of segment and depth.
        views: crops per image for LiDAR.
        view_images: maximum number of images for LiDAR.
        batch_size: images per forward pass.
        threads: that decode images.
        device: of the encoder and the heads.
        precision: key of `PRECISIONS`.
        seed: of all random numbers.
        max_pixels: images with more pixels are not read, as `data.max_pixels`.
        values: how images become channels, as in training.
        cache: folder of `cache.FeatureCache` for the features of whole sets; None: none.
        cache_gib: size of that folder.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frame: str = "crop"
    tasks: Sequence[str] = ALL
    pool: str = "mean"
    layers: str | None = None
    k: Sequence[int] = NEIGHBOURS
    temperature: float | Sequence[float] = 0.07
    solvers: Sequence[str] = ("lbfgs",)
    c: float = 1.0
    max_iterations: int = 2000
    recipe: sweep.Recipe = field(default_factory=sweep.Recipe)
    augment: bool = False
    select: str = "test"
    per_class: int = 10
    list_file: str | None = None
    draws: int = 1
    c_path: Sequence[float] = lowshot.C_PATH
    l2: float | None = None
    normalise: str = "columns"
    tune_few: bool = False
    attentive_recipe: attentive.Recipe = field(default_factory=attentive.Recipe)
    finetune_recipe: finetune.Recipe = field(default_factory=finetune.Recipe)
    few_recipe: finetune.Recipe = FEW
    token_gib: float = 2.0
    bank: int = 100_000
    dense_recipe: DenseRecipe = field(default_factory=DenseRecipe)
    views: int = 10
    view_images: int = 1000
    batch_size: int = 256
    threads: int = 2
    device: str = "cpu"
    precision: str = "float32"
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    values: Values = PLAIN
    cache: str | None = None
    cache_gib: float = 4.0

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Temperatures of the k-NN vote."""
        return (self.temperature,) if isinstance(self.temperature, int | float) else tuple(self.temperature)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the encoder's matrix products."""
        return PRECISIONS[self.precision]

    def check(self) -> None:
        """Check all settings.

        Raises:
            ValueError: names the setting.
        """
        sweep.check_choices("solvers", self.solvers, SOLVERS)
        sweep.check_choices("select", (self.select,), SELECT)
        sweep.check_choices("pool", (self.pool,), POOLS)
        sweep.check_choices("frame", (self.frame,), FRAMES)
        sweep.check_choices("normalise", (self.normalise,), NORMALISE)
        sweep.check_choices("layers", (self.layers or "last",), LAYERS)
        sweep.check_choices("precision", (self.precision,), PRECISIONS)
        if min(self.draws, self.views - 1, self.view_images - 1, self.batch_size, self.threads) < 1:
            raise ValueError("draws, batch size and threads: expected numbers from 1; views and their images: from 2")
        if not 0 < self.cache_gib < float("inf"):
            raise ValueError(f"cache size: expected GiB above 0, got {self.cache_gib:g}")
        if {"sgd", "lars"} & set(self.solvers):
            self.recipe.check()

    def plain(self) -> dict[str, Any]:
        """The settings that scores depend on, as JSON values."""
        default = [key for key, value in (("values", PLAIN), ("pool", "mean")) if getattr(self, key) == value]
        left_out = ("cache", "cache_gib", *default)  # as in older results
        return {key: value for key, value in asdict(self).items() if key not in left_out}
