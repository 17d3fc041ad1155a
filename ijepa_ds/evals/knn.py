"""k nearest neighbours on frozen features: no training, the quickest honest look at a representation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
) -> dict[str, float]:
    """Top-1 accuracy in percent by cosine similarity, votes weighted by exp(similarity / temperature).

    The protocol of Wu et al. 2018, as used by DINO and its successors.

    Args:
        train_features: `[n, D]`.
        train_labels: int64 `[n]`, 0 .. classes - 1.
        test_features: `[m, D]`.
        test_labels: int64 `[m]`.
        k: neighbours; values above n are left out.
        temperature: of the votes.

    Returns:
        {"20-NN": percent, ...}.
    """
    sizes = [size for size in k if size <= len(train_features)]
    if not sizes:
        raise ValueError(f"k-NN with k of {list(k)} needs more than the {len(train_features)} training images there are")
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    train, test = F.normalize(train_features, dim=1), F.normalize(test_features, dim=1)
    right = dict.fromkeys(sizes, 0)
    for queries, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
        similarity, index = (queries @ train.T).topk(max(sizes), dim=1)  # [q, k]
        weight, votes = (similarity / temperature).exp(), F.one_hot(train_labels[index], classes).float()
        for size in sizes:
            score = (weight[:, :size, None] * votes[:, :size]).sum(dim=1)
            right[size] += int((score.argmax(dim=1) == labels).sum())
    return {f"{size}-NN": 100.0 * right[size] / len(test_labels) for size in sizes}
