"""How an encoder is scored: every choice in one place, as it is written to `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ijepa_ds.evals import attentive, finetune, knn, lowshot, sweep

TASKS = ("knn", "linear", "attentive", "lowshot", "finetune", "count", "distance", "rank")
ALL = ("knn", "linear")  # of `ijepa-ds eval all`: the quick protocol for following and comparing runs
SOLVERS = ("lbfgs", "sgd", "lars")
LAYERS = {"last": 1, "last4": 4}
SELECT = ("test", "holdout")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FEW = finetune.Recipe(batch_size=512, lr=3e-5, weight_decay=0.05, mixup=0.0, cutmix=0.0, drop_path=0.0)  # paper: 1 %, L/16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an encoder is scored.

    Attributes:
        size: side of the images in pixels.
        mean: of each channel, of pixels in 0 .. 1, as in training.
        std: of each channel.
        tasks: of `TASKS`.
        layers: `last` or `last4`, the features of knn, lowshot and rank; of the sweep too unless None: it tries both.
        k: neighbours; those above the number of training images are left out with a note.
        temperature: of the k-NN vote; one or several.
        solvers: of the linear classifier, of `SOLVERS`.
        c: inverse regularisation of the one that L-BFGS fits.
        max_iterations: of that solver.
        recipe: of SGD and LARS.
        augment: train those on random crops and flips, other ones each epoch, instead of cached features.
        select: images on which the best of a sweep is chosen: `test`, as the paper does, or a `holdout` from training.
        per_class: images a class for lowshot.
        list_file: or the file that names them.
        draws: of those images; scores are averaged.
        c_path: inverse regularisations that lowshot tries.
        l2: or one penalty on the mean loss, in its stead.
        tune_few: fine-tune on the few images too.
        attentive_recipe: of the attentive heads.
        finetune_recipe: of fine-tuning on all labels.
        few_recipe: of fine-tuning on the few images.
        token_gib: tokens up to this size are kept in memory; beyond, they are computed anew each epoch.
        views: crops of an image for LiDAR.
        view_images: images for LiDAR at most.
        batch_size: images a forward pass.
        threads: that decode images.
        device: where the encoder and the heads run.
        precision: of `PRECISIONS`.
        seed: of everything drawn.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tasks: Sequence[str] = ALL
    layers: str | None = None
    k: Sequence[int] = knn.NEIGHBOURS
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
    tune_few: bool = False
    attentive_recipe: attentive.Recipe = field(default_factory=attentive.Recipe)
    finetune_recipe: finetune.Recipe = field(default_factory=finetune.Recipe)
    few_recipe: finetune.Recipe = FEW
    token_gib: float = 2.0
    views: int = 10
    view_images: int = 1000
    batch_size: int = 256
    threads: int = 2
    device: str = "cpu"
    precision: str = "float32"
    seed: int = 0

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Of the k-NN vote."""
        return (self.temperature,) if isinstance(self.temperature, int | float) else tuple(self.temperature)

    @property
    def dtype(self) -> torch.dtype:
        """Of the encoder's matrix products."""
        return PRECISIONS[self.precision]

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: naming the setting.
        """
        sweep.check_choices("tasks", self.tasks, TASKS)
        sweep.check_choices("solvers", self.solvers, SOLVERS)
        sweep.check_choices("select", (self.select,), SELECT)
        sweep.check_choices("layers", (self.layers or "last",), LAYERS)
        sweep.check_choices("precision", (self.precision,), PRECISIONS)
        if min(self.draws, self.views - 1, self.view_images - 1, self.batch_size, self.threads) < 1:
            raise ValueError("draws, batch size and threads: expected numbers from 1; views and their images: from 2")
        if {"sgd", "lars"} & set(self.solvers):
            self.recipe.check()

    def plain(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return asdict(self)
