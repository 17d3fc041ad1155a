"""Fine-tuning of the encoder with a linear classifier by the paper's recipes, with timm's augmentation.

Source: paper, appendix A.2: AdamW, cosine, layer decay; mixup, cutmix and drop path on all labels, none of them on 1 %.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from ijepa_ds.data.pillow import MAX_PIXELS
from ijepa_ds.data.transforms import normalize
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.evals.augmented import Augmented, Images, augmentation
from ijepa_ds.evals.folders import batches
from ijepa_ds.terminal import track


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of fine-tuning; defaults: the paper's for all labels.

    Attributes:
        lr: of the head, the highest: each block before has `layer_decay` times the rate of the next; not scaled with the batch.
        weight_decay: of weights, not of registers, biases and other 1-D parameters.
        layer_decay: ratio of the learning rates of a block and the next, of the last block and the head, and of patch embedding
            and registers and the first block.
        epochs: passes over the training images; warm-up over the first 10 %.
        batch_size: images; limited to a quarter of the training images.
        smoothing: of labels.
        mixup: alpha; 0: none.
        cutmix: alpha; 0: none.
        drop_path: of the last block, rising linearly from 0 at the first.
        rand_augment: timm's configuration string; empty: only crops and flips.
        crop_scale: smallest area of a crop as a share of the image.
        seed: of all random numbers.
    """

    lr: float = 1e-4
    weight_decay: float = 0.05
    layer_decay: float = 0.75
    epochs: int = 50
    batch_size: int = 528
    smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    drop_path: float = 0.25
    rand_augment: str = "rand-m9-mmax9-mstd0.5-inc1"  # mmax: 10 makes timm request 0 bits, which Pillow rejects
    crop_scale: float = 0.08
    seed: int = 0


class Classifier(nn.Module):
    """An encoder, average pooling and a linear layer. timm uses `group_matcher` to find its layers."""

    def __init__(self, encoder: nn.Module, width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layers from input to head, by parameter names."""
        return {
            "stem": r"^encoder\.(?:patch_embed|reg_token)",
            "blocks": [(r"^encoder\.blocks\.(\d+)", None), (r"^encoder\.norm", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Additional parameters without weight decay: the registers, which are not 1-D."""
        return {"encoder.reg_token"}

    def forward(self, images: Tensor) -> Tensor:
        """`images: [B, channels, S, S]`, normalised -> [B, C]."""
        return self.head(self.encoder(images).float().mean(dim=1))


class _Order(Sampler):
    """Batches of (epoch, position) for all epochs."""

    def __init__(self, images: int, batch: int, recipe: Recipe) -> None:
        self.images, self.batch, self.recipe = images, batch, recipe

    def __len__(self) -> int:
        return self.recipe.epochs * (self.images // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.recipe.epochs):
            order = np.random.default_rng((self.recipe.seed, epoch)).permutation(self.images)
            for start in range(0, self.images - self.batch + 1, self.batch):
                yield [(epoch, int(position)) for position in order[start : start + self.batch]]


def evaluate(
    encoder: nn.Module,
    train_paths: Sequence[str],
    train_labels: Tensor,
    test_paths: Sequence[str],
    test_labels: Tensor,
    *,
    size: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    recipe: Recipe | None = None,
    workers: int = 2,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: str | None = None,
    values: Values = PLAIN,
    max_pixels: int = MAX_PIXELS,
    filled: dict[str, int] | None = None,
) -> dict[str, float]:
    """Fine-tune a copy of an encoder and score it after the last epoch.

    Args:
        encoder: not modified; `encoder(images [B, 3, S, S]) -> [B, N, D]`, with `blocks`, `patch_embed` and `norm`.
        train_paths: n images.
        train_labels: int64 [n], from 0.
        test_paths: m images, resized and cropped centrally.
        test_labels: int64 [m].
        size: S, pixels.
        width: D.
        mean: per channel, for pixels in 0 .. 1.
        std: per channel.
        recipe: settings; None: the paper's for all labels.
        workers: processes that read and augment; the result does not depend on them.
        device: for training.
        dtype: of matrix products.
        progress: label of the progress bar; None: no bar.
        values: how images become channels; of others than RGB of 8 bits, augmentation is crops and flips.
        max_pixels: larger images are unreadable.
        filled: as in `data.transforms.read_layers`, of the test images.

    Returns:
        `top1` in percent, `train_loss` of the last epoch.

    Raises:
        ValueError: a single class, an image that cannot be read, or a loss that is not finite.
    """
    recipe, device = recipe or Recipe(), torch.device(device)
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    if len(train_labels.unique()) < 2:
        raise ValueError("the training images have a single class: a classifier needs at least two")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        kept = random.getstate(), np.random.get_state()
        torch.manual_seed(recipe.seed)
        np.random.seed(recipe.seed % 2**32)
        try:
            model = Classifier(copy.deepcopy(encoder), width, classes).to(device).train().requires_grad_(True)
            set_drop_path(model.encoder, recipe.drop_path)
            images = Images(train_paths, train_labels, size, mean, std, values, max_pixels)
            loss = _fit(model, images, recipe, workers, dtype, progress)
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])
    images = images._replace(paths=test_paths, labels=test_labels)
    right = _score(model.eval(), images, recipe.batch_size, dtype, filled)
    return {"top1": right, "train_loss": loss}


def set_drop_path(encoder: nn.Module, rate: float) -> None:
    """Enable stochastic depth with a rate from 0 in the first block to `rate` in the last."""
    blocks = list(encoder.blocks)  # type: ignore[arg-type]
    for number, block in enumerate(blocks):
        share = rate * number / max(1, len(blocks) - 1)
        for name in ("drop_path", "drop_path1", "drop_path2"):  # parallel blocks have only the first
            if hasattr(block, name):
                setattr(block, name, DropPath(share) if share else nn.Identity())


def parameter_groups(model: Classifier, recipe: Recipe) -> list[dict[str, Any]]:
    """Groups with `params`, `weight_decay` and `lr_scale`, the share of `recipe.lr`."""
    return param_groups_layer_decay(model, recipe.weight_decay, model.no_weight_decay(), layer_decay=recipe.layer_decay)


def _fit(
    model: Classifier,
    images: Images,
    recipe: Recipe,
    workers: int,
    dtype: torch.dtype,
    progress: str | None,
) -> float:
    """Train; return the mean loss of the last epoch."""
    paths, labels = images.paths, images.labels
    device = next(model.parameters()).device
    batch = max(2, min(recipe.batch_size, len(paths) // 4) // 2 * 2)  # timm's Mixup pairs images
    order = _Order(len(paths), batch, recipe)
    augmented = Augmented(images, augmentation(images, recipe.crop_scale, recipe.rand_augment), recipe.seed)
    # fork: Python 3.14's default would pickle the augmentation
    feed = {"num_workers": max(1, workers), "prefetch_factor": 2, "multiprocessing_context": "fork"}
    loader = DataLoader(augmented, batch_sampler=order, **feed)  # type: ignore[arg-type]
    mix = None
    if recipe.mixup or recipe.cutmix:
        mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=model.head.out_features)
    groups = parameter_groups(model, recipe)
    optimizer = torch.optim.AdamW([group | {"first": recipe.lr * group["lr_scale"]} for group in groups], lr=recipe.lr)
    steps, warmup = len(order), max(1, len(order) // 10)
    per_epoch = steps // recipe.epochs
    losses: list[Tensor] = []
    positions = iter(order)
    for step, drawn in enumerate(track(loader, progress, "steps")):
        chosen = torch.tensor([position for _, position in next(positions)])
        pixels, targets = drawn.to(device), labels[chosen].to(device)
        if mix:
            pixels, targets = mix(pixels, targets)
        share = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = group["first"] * share
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = model(pixels)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=0.0 if mix else recipe.smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses = [*losses[-per_epoch + 1 :], loss.detach()] if per_epoch > 1 else [loss.detach()]
    last = float(torch.stack(losses).mean())
    if not math.isfinite(last):
        raise ValueError(f"fine-tuning diverged (its loss is {last}): lower --lr")
    return last


@torch.no_grad()
def _score(model: Classifier, images: Images, batch: int, dtype: torch.dtype, filled: dict[str, int] | None) -> float:
    labels, device, right, seen = images.labels, next(model.parameters()).device, 0, 0
    read = batches(images.paths, images.size, batch, 2, images.max_pixels, values=images.values, filled=filled)
    for pixels in read:
        normalized = normalize(torch.from_numpy(pixels).to(device), images.mean, images.std, torch.float32)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            guess = model(normalized).argmax(dim=1).cpu()
        right += int((guess == labels[seen : seen + len(guess)]).sum())
        seen += len(guess)
    return 100 * right / len(labels)
