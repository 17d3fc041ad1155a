"""What is fitted to frozen patch tokens: a linear head, and a bank of labelled patches for k-NN.

Several ranks train one head: each takes the images of its share out of every batch, and the gradients are summed. So the
head does not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.errors import UserError
from ijepa_ds.evals.dense.recipe import Recipe
from ijepa_ds.evals.dense.tokens import Tokens
from ijepa_ds.evals.dense.windows import enlarge
from ijepa_ds.evals.ranks import World, agree
from ijepa_ds.terminal import track

_BLOCK_VALUES = 1 << 24  # similarities in memory at a time: 64 MiB
_LEAST = 1e-6  # deviation of a token's value

Loss = Callable[[Tensor, Tensor], tuple[Tensor, int]]
"""Maps [T, C, S, S] and labels [T, S, S] -> sum of the losses, number of its terms."""


def add_over_ranks(value: Tensor, world: World) -> Tensor:
    """The sum of a CPU tensor over ranks, in place."""
    if world.size > 1:
        dist.all_reduce(value, group=world.group)
    return value


class TrainingSet:
    """Tokens and labels of the training images of this rank's share.

    Attributes:
        total: images of all ranks.
        mine: numbers of this rank's images among them.
        mean: float32 [D], of all tokens of all ranks.
        deviation: float32 [D].
    """

    def __init__(self, tokens: Tokens, total: int, world: World) -> None:
        """Compute all tokens once, for their statistics; keep them if those of all images fit `token_gib` in memory.

        Args:
            tokens: of the images of `world.share(total)`.
            total: images of all ranks.
            world: the ranks.
        """
        self.tokens, self.total, self.world, self.mine = tokens, total, world, world.share(total)
        self._kept: list[tuple[Tensor, Tensor]] | None = []
        limit = tokens.settings.token_gib * 2**30

        def look() -> Tensor:
            sums, held = torch.zeros(1, dtype=torch.float64), 0
            for number, (part, labels) in enumerate(tokens.windows(range(len(self.mine)), "training images")):
                values = part.flatten(0, 1).double()
                found = torch.cat([values.sum(0), values.square().sum(0), torch.tensor([float(len(values))])])
                sums = found if number == 0 else sums + found
                held += part.numel() * part.element_size()
                if held > limit:
                    self._kept = None
                if self._kept is not None:
                    self._kept.append((part, labels))
            return sums

        sums = agree(look, world)
        if world.size > 1:  # a rank without images does not know D
            width = torch.tensor([len(sums)])
            dist.all_reduce(width, op=dist.ReduceOp.MAX, group=world.group)
            sums = sums if len(sums) == int(width) else torch.zeros(int(width), dtype=torch.float64)
        first, second = add_over_ranks(sums, world)[:-1].view(2, -1) / sums[-1]
        self.mean, self.deviation = first.float(), (second - first.square()).clamp(min=_LEAST**2).sqrt().float()

    def images(self, positions: Sequence[int], shown: str | None = None) -> list[tuple[Tensor, Tensor]]:
        """Tokens [T, N, D] and labels [T, S, S] of images of this rank, by position in its share."""
        if self._kept is not None:
            return [self._kept[position] for position in positions]
        return list(self.tokens.windows(positions, shown))


@dataclass(frozen=True)
class Head:
    """A linear map of standardised tokens.

    Attributes:
        weight: float32 [C, D].
        bias: float32 [C].
        mean: float32 [D].
        deviation: float32 [D].
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    deviation: Tensor

    def maps(self, tokens: Tensor, size: int) -> Tensor:
        """Outputs for every pixel of windows: tokens [T, N, D] -> [T, C, size, size], bilinear between patches."""
        place = tokens.device
        rows = (tokens - self.mean.to(place)) / self.deviation.to(place)
        out = F.linear(rows, self.weight.to(place), self.bias.to(place))
        return enlarge(_grid(out), size, size)


def _grid(tokens: Tensor) -> Tensor:
    """[T, N, C] -> [T, C, g, g] with g * g = N."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def train_head(
    training: TrainingSet, outputs: int, bias: Tensor, loss: Loss, recipe: Recipe, progress: str | None,
    beat: Callable[[], None] = lambda: None,
) -> Head:  # fmt: skip
    """Train a linear head; every rank gets the same one.

    Args:
        training: images of this rank.
        outputs: C.
        bias: float32 [C], where the bias starts; the matrix starts at zero.
        loss: of a batch.
        recipe: of the training.
        progress: label of the progress bar; None: no bar.
        beat: called after every update.
    """
    size, world = training.tokens.settings.size, training.world
    head = Head(torch.zeros(outputs, len(training.mean)), bias.clone(), training.mean, training.deviation)
    trained = [head.weight.requires_grad_(), head.bias.requires_grad_()]
    groups = [{"params": [trained[0]], "weight_decay": recipe.weight_decay}, {"params": [trained[1]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr)
    batch = max(1, min(recipe.batch_size, training.total // 4))
    steps = recipe.epochs * (training.total // batch)
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(training.total, generator=generator)
    for step in track(range(steps), progress, "updates"):
        place = step % (training.total // batch)
        if place == 0 and step:
            order = torch.randperm(training.total, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        chosen = [int(i) - training.mine.start for i in order[place * batch : (place + 1) * batch] if int(i) in training.mine]
        optimizer.zero_grad()
        count = 0
        if chosen:
            parts = training.images(chosen)
            tokens, labels = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
            total, count = loss(head.maps(tokens, size), labels)
            total.backward()
        gradients = [value.grad if value.grad is not None else torch.zeros_like(value) for value in trained]
        sums = add_over_ranks(torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([float(count)])]), world)
        for value, part in zip(trained, sums[:-1].split([value.numel() for value in trained]), strict=True):
            value.grad = part.view_as(value) / sums[-1].clamp(min=1)
        optimizer.step()
        beat()
    return Head(head.weight.detach(), head.bias.detach(), head.mean, head.deviation)


def cross_entropy(maps: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Loss of a segmentation; labels below 0 are ignored."""
    return F.cross_entropy(maps, labels.long(), ignore_index=-1, reduction="sum"), int((labels >= 0).sum())


def log_depth(maps: Tensor, depths: Tensor) -> tuple[Tensor, int]:
    """Absolute error of the logarithm of the depth, the only output; depths of 0 are ignored."""
    valid = depths > 0
    return (maps[:, 0][valid] - depths[valid].log()).abs().sum(), int(valid.sum())


@dataclass(frozen=True)
class Bank:
    """Labelled patches: k-NN segmentation by retrieval.

    Attributes:
        tokens: float32 [n, D], of length 1.
        labels: int64 [n].
        classes: C.
        k: neighbours.
        temperature: a neighbour of similarity s has weight exp(s / temperature).
    """

    tokens: Tensor
    labels: Tensor
    classes: int
    k: int = 30
    temperature: float = 0.07

    def maps(self, tokens: Tensor, size: int) -> Tensor:
        """Shares of the votes for every pixel of windows: tokens [T, N, D] -> [T, C, size, size]."""
        rows = F.normalize(tokens.flatten(0, 1).cpu(), dim=1)
        votes = rows.new_zeros(len(rows), self.classes)
        block = max(1, _BLOCK_VALUES // len(self.tokens))
        for start in range(0, len(rows), block):
            similarity, nearest = (rows[start : start + block] @ self.tokens.T).topk(min(self.k, len(self.tokens)), dim=1)
            weight = ((similarity - 1) / self.temperature).exp()
            votes[start : start + block].scatter_add_(1, self.labels[nearest], weight)
        votes /= votes.sum(1, keepdim=True)
        return enlarge(_grid(votes.view(*tokens.shape[:2], -1)), size, size)


def patch_labels(labels: Tensor, patches: int) -> Tensor:
    """The most frequent label of each patch: [T, S, S] -> int64 [T, patches]; below 0 if that is an ignored one."""
    side = math.isqrt(patches)
    p = labels.shape[1] // side
    blocks = labels.unflatten(2, (side, p)).unflatten(1, (side, p)).permute(0, 1, 3, 2, 4).flatten(3)
    return blocks.mode(dim=3).values.flatten(1).long()


def fill_bank(training: TrainingSet, classes: int, most: int, seed: int, progress: str | None = None) -> Bank:
    """A bank of random labelled patches of all ranks' training images, equally many of each; every rank gets the same one.

    Args:
        training: images of this rank.
        classes: C.
        most: patches, about; at least one of each image.
        seed: of the choice.
        progress: label of the progress bar; None: no bar.
    """
    world, quota = training.world, max(1, most // training.total)
    tokens, labels = [torch.empty(0, len(training.mean))], [torch.empty(0, dtype=torch.int64)]
    bar = track(training.mine, progress, "images")
    for position, number in enumerate(bar):
        part, of_pixels = training.images([position])[0]
        found = patch_labels(of_pixels, part.shape[1]).flatten()
        labelled = (found >= 0).nonzero()[:, 0]
        chosen = labelled[torch.randperm(len(labelled), generator=torch.Generator().manual_seed(seed + number))[:quota]]
        tokens.append(F.normalize(part.flatten(0, 1)[chosen], dim=1))
        labels.append(found[chosen])
    rows, kinds = torch.cat(tokens), torch.cat(labels)
    if world.size > 1:
        counts = torch.zeros(world.size, dtype=torch.int64)
        counts[world.rank] = len(rows)
        add_over_ranks(counts, world)
        whole = [(rows.new_empty(int(count), rows.shape[1]), kinds.new_empty(int(count))) for count in counts]
        whole[world.rank] = (rows, kinds)
        for rank, parts in enumerate(whole):
            for part in parts:
                dist.broadcast(part, src=rank, group=world.group)
        rows, kinds = torch.cat([part for part, _ in whole]), torch.cat([part for _, part in whole])
    if not len(rows):
        raise UserError(
            "in no patch of the training images do most pixels have a label, so there is nothing to retrieve: use denser "
            "labels, or more images (--max-train)"
        )
    return Bank(rows, kinds, classes)
