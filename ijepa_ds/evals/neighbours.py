"""Nearest training images of a few test images: what an encoder finds alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.evals.folders import Pair

QUERIES, NEAREST = 8, 4


def nearest(train: Tensor, test: Tensor, pair: Pair, queries: int = QUERIES, count: int = NEAREST) -> list[dict[str, Any]]:
    """Find the nearest training images of a few test images by cosine similarity.

    The test images are the first ones of each class in turn, so that every encoder gets the same ones.

    Args:
        train: features [n, D].
        test: features [m, D].
        pair: the images of these features.
        queries: number of test images at most.
        count: training images of each at most.

    Returns:
        for each test image `image`, `class`, `nearest` (names, nearest first) and `classes` of these; names are paths, or
        `ImageFile`s, which can also be read out of tars and parquet.
    """
    labels = pair.test.labels
    order = torch.argsort(labels, stable=True)
    _, sizes = torch.unique_consecutive(labels[order], return_counts=True)
    turn = torch.cat([torch.arange(int(size)) for size in sizes])  # number of each image within its class
    chosen = order[torch.argsort(turn, stable=True)][:queries]
    similarity = F.normalize(test[chosen], dim=1) @ F.normalize(train, dim=1).T
    found = similarity.topk(min(count, len(train)), dim=1).indices
    return [
        {
            "image": pair.test.paths[int(place)],
            "class": pair.classes[int(labels[place])],
            "nearest": [pair.train.paths[int(i)] for i in row],
            "classes": [pair.classes[int(pair.train.labels[i])] for i in row],
        }
        for place, row in zip(chosen, found, strict=True)
    ]
