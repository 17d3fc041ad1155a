"""Attentive probe: cross-attention heads on frozen patch tokens, several recipes trained in parallel.

A learnt query attends to an image's tokens, followed by a linear classifier (timm's attention pooling). Averaging tokens
may hide information in single patches. Source: attentive probing of V-JEPA and its successors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.terminal import track

Batches = Callable[[Tensor], Iterable[Tensor]]  # positions [n] -> batches of their tokens [B, N, D], in this order


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Training of the heads: AdamW, linear warm-up over 5 %, cosine decay to 0.

    Attributes:
        lr: values to try, each with every weight decay.
        weight_decay: values to try.
        epochs: passes over the training images.
        batch_size: images.
        head_width: channels of one attention head.
        smoothing: of labels.
        seed: of initialisation and order.
    """

    lr: Sequence[float] = (3e-4, 1e-3, 3e-3)
    weight_decay: Sequence[float] = (0.01, 0.1)
    epochs: int = 20
    batch_size: int = 256
    head_width: int = 64
    smoothing: float = 0.0
    seed: int = 0


class Probe(nn.Module):
    """Attention pooling with one query, followed by a linear classifier."""

    def __init__(self, width: int, num_classes: int, head_width: int) -> None:
        super().__init__()
        heads = max(1, width // head_width)
        while width % heads:
            heads -= 1
        self.norm = nn.LayerNorm(width)
        self.pool = AttentionPoolLatent(width, num_heads=heads, mlp_ratio=4.0, norm_layer=nn.LayerNorm)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """`tokens: [B, N, D]` -> [B, C]."""
        return self.head(self.pool(self.norm(tokens)))


def evaluate(
    train_batches: Batches,
    train_labels: Tensor,
    test_batches: Batches,
    test_labels: Tensor,
    width: int,
    recipe: Recipe | None = None,
    *,
    choose_batches: Batches | None = None,
    choose_labels: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: str | None = None,
) -> dict[str, dict[str, float]]:
    """Train one probe for each learning rate and weight decay on the same batches; score all.

    Args:
        train_batches: tokens of training images in an order that is asked for, any number at a time.
        train_labels: int64 [n].
        test_batches: the same of the test images.
        test_labels: int64 [m].
        width: D.
        recipe: settings to try.
        choose_batches: tokens of images to choose the best probe on; None: the test images.
        choose_labels: int64 [k].
        device: of the probes.
        progress: label of the progress bar; None: no bar.

    Returns:
        `test` and `choose`: accuracy in percent by setting, such as {"lr 0.001 wd 0.01": 71.2}; 0 for a probe that diverged.

    Raises:
        ValueError: a single class, or no settings to try.
    """
    recipe = recipe or Recipe()
    if len(train_labels.unique()) < 2:
        raise ValueError("the training images have a single class: a classifier needs at least two")
    if not recipe.lr or min(recipe.lr) <= 0 or not recipe.weight_decay or min(recipe.epochs, recipe.batch_size) < 1:
        raise ValueError("attentive: expected learning rates above 0, weight decays, epochs and batch size from 1")
    settings = list(itertools.product(recipe.lr, recipe.weight_decay))
    probes = _probes(len(settings), width, int(train_labels.max()) + 1, recipe, device)
    groups = [
        {"params": list(probe.parameters()), "lr": lr, "weight_decay": decay, "first": lr}
        for probe, (lr, decay) in zip(probes, settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    labels, generator = train_labels.to(device), torch.Generator().manual_seed(recipe.seed)
    steps, step = recipe.epochs * math.ceil(len(labels) / recipe.batch_size), 0
    for _ in track(range(recipe.epochs), progress, "epochs"):
        order, seen = torch.randperm(len(labels), generator=generator), 0
        for tokens in rebatched(train_batches(order), recipe.batch_size):
            targets = labels[order[seen : seen + len(tokens)].to(device)]
            seen, step = seen + len(tokens), step + 1
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * _factor(step / steps)
            losses = [F.cross_entropy(probe(tokens.to(device)), targets, label_smoothing=recipe.smoothing) for probe in probes]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # the probes share no parameters
            for probe in probes:
                nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimizer.step()
    names = [f"lr {lr:g} wd {decay:g}" for lr, decay in settings]
    scores = {"test": dict(zip(names, _score(probes, test_batches, test_labels, device), strict=True))}
    scores["choose"] = scores["test"]
    if choose_batches is not None and choose_labels is not None:
        scores["choose"] = dict(zip(names, _score(probes, choose_batches, choose_labels, device), strict=True))
    return scores


def rebatched(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the same rows in the same order, `size` at a time; the last batch may be smaller."""
    held: list[Tensor] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += len(batch)
        while count >= size:
            rows = torch.cat(held) if len(held) > 1 else held[0]
            yield rows[:size]
            held, count = [rows[size:]], count - size
    if count:
        yield torch.cat(held)


def _probes(count: int, width: int, classes: int, recipe: Recipe, device: torch.device | str) -> list[Probe]:
    """Probes with equal initial values; the caller's random state is not changed."""
    probes = []
    for _ in range(count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            probes.append(Probe(width, classes, recipe.head_width).to(device).train())
    return probes


def _factor(share: float) -> float:
    """Learning rate as a fraction of its maximum, at a share of the training."""
    return share / 0.05 if share < 0.05 else 0.5 * (1 + math.cos(math.pi * (share - 0.05) / 0.95))


@torch.no_grad()
def _score(probes: list[Probe], batches: Batches, labels: Tensor, device: torch.device | str) -> list[float]:
    right, seen = torch.zeros(len(probes), dtype=torch.int64), 0
    for probe in probes:
        probe.eval()
    for tokens in batches(torch.arange(len(labels))):
        targets = labels[seen : seen + len(tokens)]
        seen += len(tokens)
        for number, probe in enumerate(probes):
            logits = probe(tokens.to(device)).cpu()
            right[number] += ((logits.argmax(dim=1) == targets) & logits.isfinite().all(dim=1)).sum()
    return (100 * right.double() / len(labels)).tolist()
