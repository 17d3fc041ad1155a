"""The paper's linear probe: many heads trained at once on frozen features, each with its own settings.

Every head is a softmax classifier trained by SGD or LARS. Heads with the same input features share one matrix product:
there is no loop over heads. Sources: paper, appendix A.2 and D; VISSL's linear benchmarks (heads, schedules, Nesterov).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.model.cpu import linear
from ijepa_ds.terminal import track

OPTIMIZERS = ("sgd", "lars")
LAYERS = ("last", "last4")
HEADS = ("linear", "bn")
SCHEDULES = ("step", "cosine")
_MOMENTUM, _TRUST, _REFERENCE_BATCH = 0.9, 0.001, 256
_INITIAL_STD = 0.01
_LAST_RATE = 0.01  # of the cosine schedule, as a share of the first rate


def check_choices(name: str, values: Sequence[str], known: Iterable[str]) -> None:
    """Refuse a setting that is empty or has unknown values.

    Raises:
        ValueError: names the setting.
    """
    if not values or not set(values) <= set(known):
        raise ValueError(f"{name}: expected some of {', '.join(known)}, got {list(values)}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of all heads.

    Defaults: the paper's ImageNet sweep at a smaller batch, plus larger learning rates, which LARS needs there.

    Attributes:
        optimizers: from `OPTIMIZERS`: SGD with momentum 0.9, or LARS (trust 0.001) on top of it.
        lr: for a batch of 256; scaled linearly with the batch, as in VISSL.
        weight_decay: of weights; of biases with `decay_biases`.
        layers: from `LAYERS`: average-pooled output, or the last four layers concatenated.
        heads: from `HEADS`: linear, optionally after batch normalisation with scale and shift, which are not decayed.
        epochs: passes over the features.
        batch_size: limited to a quarter of the images.
        schedule: `step`: divide by ten every `decay_every` epochs; `cosine`: fall to a hundredth, once an epoch.
        decay_every: epochs.
        nesterov: Nesterov's momentum.
        decay_biases: decay biases as well.
        seed: of initialisation and image order.
    """

    optimizers: Sequence[str] = OPTIMIZERS
    lr: Sequence[float] = (0.001, 0.01, 0.05, 0.25, 1.0)
    weight_decay: Sequence[float] = (0.0005, 0.0)
    layers: Sequence[str] = LAYERS
    heads: Sequence[str] = HEADS
    epochs: int = 50
    batch_size: int = 1024
    schedule: str = "step"
    decay_every: int = 15
    nesterov: bool = False
    decay_biases: bool = False
    seed: int = 0

    def check(self) -> None:
        """Check the settings.

        Raises:
            ValueError: names the setting.
        """
        check_choices("optimizers", self.optimizers, OPTIMIZERS)
        check_choices("layers", self.layers, LAYERS)
        check_choices("heads", self.heads, HEADS)
        check_choices("schedule", (self.schedule,), SCHEDULES)
        if not self.lr or min(self.lr) <= 0 or not self.weight_decay or min(self.weight_decay) < 0:
            raise ValueError("lr: expected numbers above 0; weight decay: numbers from 0")
        if min(self.epochs, self.batch_size, self.decay_every) < 1:
            raise ValueError("epochs, batch size and decay_every: expected numbers from 1")

    def factor(self, epoch: float) -> float:
        """Learning rate after `epoch` epochs as a fraction of the initial one."""
        if self.schedule == "cosine":
            return _LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * int(epoch) / self.epochs))
        return 0.1 ** int(epoch / self.decay_every)


@dataclass(frozen=True)
class Head:
    """One head of the sweep."""

    optimizer: str
    lr: float
    weight_decay: float
    layers: str
    head: str

    def __str__(self) -> str:
        """Its name in tables."""
        return f"{self.optimizer} lr {self.lr:g} wd {self.weight_decay:g} {self.layers} {self.head}"


class _Group:
    """Heads with the same input: the same layers, with or without batch normalisation."""

    def __init__(
        self, members: Sequence[Head], width: int, classes: int, recipe: Recipe, batch: int, device: torch.device | str
    ) -> None:
        self.members, self.width = members, width
        self.nesterov, self.decay_biases = recipe.nesterov, recipe.decay_biases
        self.norm = nn.BatchNorm1d(width, affine=False).to(device) if members[0].head == "bn" else None
        self.scale = torch.ones(len(members), width, device=device)  # [H, D], of the batch normalisation of each head
        self.shift = torch.zeros_like(self.scale)
        generator = torch.Generator().manual_seed(recipe.seed)
        start = _INITIAL_STD * torch.randn(classes, width, generator=generator)  # equal initial values for all heads
        self.weight = start.to(device).repeat(len(members), 1, 1)  # [H, C, D]
        self.bias = torch.zeros(len(members), classes, device=device)
        self.trained = [self.weight, self.bias, *([self.scale, self.shift] if self.norm else [])]
        self.velocity = [torch.zeros_like(value) for value in self.trained]
        scale = batch / _REFERENCE_BATCH
        self.lr = torch.tensor([head.lr * scale for head in members], device=device)[:, None]
        self.decay = torch.tensor([head.weight_decay for head in members], device=device)[:, None, None]
        self.lars = torch.tensor([head.optimizer == "lars" for head in members], device=device)[:, None, None]

    def input(self, x: Tensor, train: bool) -> Tensor:
        """The group's input: the last D columns of `x` [B, at least D], normalised."""
        x = x[:, -self.width :].contiguous()  # oneDNN is about 100 times slower on a view of some columns
        return x if self.norm is None else self.norm.train(train)(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [B, H, C] of `x: [B, D]` from `input`: one matrix product for all heads."""
        weight, bias = self.weight, self.bias
        if self.norm:  # scale and shift are folded into the matrix
            weight, bias = weight * self.scale[:, None], bias + torch.einsum("hcd,hd->hc", weight, self.shift)
        return _product(x, weight.flatten(0, 1), bias.flatten()).unflatten(1, bias.shape)

    def step(self, x: Tensor, labels: Tensor, factor: float) -> None:
        """One update of every head on a batch."""
        x = self.input(x, train=True)
        gradient = self.logits(x).softmax(dim=2)  # d(mean cross-entropy) / d(logits) = (softmax - one-hot) / B
        gradient[torch.arange(len(x), device=x.device), :, labels] -= 1
        gradient /= len(x)
        folded = _product(gradient.flatten(1).T, x.T).view_as(self.weight)  # [H, C, D], of the folded matrix
        bias_gradient = gradient.sum(dim=0)
        gradients = [folded, bias_gradient]
        if self.norm:
            of_scale = (folded * self.weight).sum(dim=1)
            of_shift = torch.einsum("hc,hcd->hd", bias_gradient, self.weight)
            of_weight = folded * self.scale[:, None] + bias_gradient[:, :, None] * self.shift[:, None]
            gradients = [of_weight, bias_gradient, of_scale, of_shift]
        gradients[0] = gradients[0] + self.decay * self.weight
        gradients[0] *= torch.where(self.lars, self._trust(gradients[0]), 1.0)
        if self.decay_biases:
            gradients[1] = gradients[1] + self.decay[:, 0] * self.bias
        for value, velocity, change in zip(self.trained, self.velocity, gradients, strict=True):
            velocity.mul_(_MOMENTUM).add_(change)
            direction = change + _MOMENTUM * velocity if self.nesterov else velocity
            value -= factor * self.lr.view(-1, *[1] * (value.ndim - 1)) * direction

    def _trust(self, decayed: Tensor) -> Tensor:
        """LARS trust ratio |w| / (|gradient| + wd |w|), with each head's weight matrix as one layer."""
        weight = self.weight.flatten(1).norm(dim=1)
        gradient = (decayed - self.decay * self.weight).flatten(1).norm(dim=1)
        return (_TRUST * weight / (gradient + self.decay.flatten() * weight + 1e-8))[:, None, None]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`, computed by the faster library."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and linear.onednn_is_faster():
        return linear.product(x, weight, bias)
    return F.linear(x, weight, bias)


def all_heads(recipe: Recipe) -> list[Head]:
    """Every combination of the recipe's settings."""
    return [
        Head(*settings)
        for settings in itertools.product(recipe.optimizers, recipe.lr, recipe.weight_decay, recipe.layers, recipe.heads)
    ]


@dataclass
class Trained:
    """The trained heads."""

    groups: list[_Group] = field(default_factory=list)

    @torch.no_grad()
    def accuracies(self, features: Tensor, labels: Tensor, block: int = 4096) -> dict[Head, float]:
        """Accuracy in percent of every head; 0 for heads that diverged.

        Args:
            features: [m, 4 D], or [m, D] if no head uses the last four layers.
            labels: int64 [m].
            block: images per block.
        """
        found: dict[Head, float] = {}
        for group in self.groups:
            right = torch.zeros(len(group.members), device=group.weight.device)
            for x, targets in zip(features.split(block), labels.split(block), strict=True):
                logits = group.logits(group.input(x.to(right.device), train=False))
                right += (logits.argmax(dim=2) == targets.to(right.device)[:, None]).sum(dim=0)
            finite = torch.isfinite(group.weight).flatten(1).all(dim=1)
            share = torch.where(finite, 100 * right.double() / len(labels), 0.0).tolist()
            found |= dict(zip(group.members, share, strict=True))
        return found


@torch.no_grad()
def train(
    features: Callable[[int], Tensor],
    labels: Tensor,
    width: int,
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> Trained:
    """Train every head of a recipe at once.

    Args:
        features: features [n, 4 D] or [n, D] of an epoch, from 0; they differ between epochs where images
            are augmented.
        labels: int64 [n], from 0.
        width: D, of one layer.
        recipe: settings of the heads.
        device: of the heads.
        progress: label of the progress bar; None: no bar.

    Raises:
        ValueError: an invalid recipe, or a single class.
    """
    recipe.check()
    n, num_classes = len(labels), int(labels.max()) + 1
    if len(labels.unique()) < 2:
        raise ValueError("the training images have a single class: a classifier needs at least two")
    batch = min(n, max(2, min(recipe.batch_size, n // 4)))  # a BatchNorm needs two
    labels = labels.to(device)
    widths = {"last": width, "last4": 4 * width}
    groups = [
        _Group(
            [head for head in all_heads(recipe) if (head.layers, head.head) == key],
            widths[key[0]], num_classes, recipe, batch, device,
        )
        for key in itertools.product(recipe.layers, recipe.heads)
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = n // batch
    for epoch in track(range(recipe.epochs), progress, "epochs"):
        x = features(epoch).to(device)
        if len(x) != n:
            raise ValueError(f"epoch {epoch}: {len(x)} features for {n} labels")
        order = torch.randperm(n, generator=generator).to(device)
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            factor = recipe.factor(epoch + step / steps)
            rows, targets = x[chosen], labels[chosen]
            for group in groups:
                group.step(rows, targets, factor)
    return Trained(groups)


def best(found: dict[Head, float], optimizer: str) -> Head:
    """The most accurate head of an optimizer; the first of equals."""
    return max((head for head in found if head.optimizer == optimizer), key=lambda head: found[head])
