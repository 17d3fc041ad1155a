"""k-NN classification on frozen features; nothing is trained.

Source: the weighted vote of Wu et al. 2018 with T = 0.07 and k in {10, 20, 100, 200}, as DINO and its
successors report.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.evals.features import check_features
from ijepa_ds.options.evals import NEIGHBOURS

_BLOCK_VALUES = 1 << 26  # similarities in memory at a time: 256 MiB in float32
VOTES = ("weighted", "majority")


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: Sequence[int] = NEIGHBOURS,
    temperature: float = 0.07,
    vote: str = "weighted",
    block: int | None = None,
) -> dict[str, float]:
    """k-NN accuracy in percent, by cosine similarity.

    Runs on the device and in the type of the features.

    Args:
        train_features: [n, D].
        train_labels: int64 [n], from 0.
        test_features: [m, D].
        test_labels: int64 [m].
        k: numbers of neighbours, from 1 to n.
        temperature: a neighbour of similarity s has weight exp(s / temperature).
        vote: `weighted`, or `majority`: every neighbour counts one. Ties go to the lower label.
        block: test images per block; None: as many as fit in 256 MiB.

    Returns:
        {"10-NN": percent, ...}, one for each k.

    Raises:
        ValueError: sets that do not match or are not finite, k above n or below 1, temperature not above 0.
    """
    check_features(train_features, train_labels, test_features, test_labels)
    if vote not in VOTES:
        raise ValueError(f"vote: expected one of {', '.join(VOTES)}, got {vote!r}")
    if not k or min(k) < 1 or max(k) > len(train_labels):
        raise ValueError(f"k: expected numbers from 1 to the {len(train_labels)} training images, got {list(k)}")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature}")
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    block = block or max(1, min(len(test_labels), _BLOCK_VALUES // len(train_labels)))
    bank = F.normalize(train_features, dim=1)
    correct = torch.zeros(len(k), dtype=torch.int64, device=bank.device)
    for query, targets in zip(test_features.split(block), test_labels.split(block), strict=True):
        similarity, nearest = (F.normalize(query, dim=1) @ bank.T).topk(max(k), dim=1)  # [b, max k], nearest first
        # exp((s - 1) / T) ranks like exp(s / T) and does not overflow
        weight = ((similarity - 1) / temperature).exp() if vote == "weighted" else torch.ones_like(similarity)
        labels = train_labels[nearest]
        for position, count in enumerate(k):
            votes = weight.new_zeros(len(query), num_classes)
            votes.scatter_add_(1, labels[:, :count], weight[:, :count])
            correct[position] += (votes.argmax(dim=1) == targets).sum()
    return {f"{count}-NN": 100 * right / len(test_labels) for count, right in zip(k, correct.tolist(), strict=True)}
