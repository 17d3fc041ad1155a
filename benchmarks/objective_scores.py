"""Scores of a frozen encoder for `benchmarks/objective.py`; one pass over the images gives all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.evals import features, knn, linear
from ijepa_ds.evals.folders import batches, read_pair

GRID = 4  # patches are averaged to this grid
SCORES = ("20-NN", "linear", "last 4", "patches")


@torch.no_grad()
def pooled(encoder: torch.nn.Module, facts: Any, paths: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Averages of the last four blocks' patches `[n, L * D]`, the output last, and of the output on a grid `[n, 16 * D]`."""
    layers = min(4, features.num_layers(encoder))
    options = features.ForwardOptions(facts.mean, facts.std, "cpu", torch.float32, layers)
    whole, grids = [], []
    for outputs in features.forward(encoder, batches(paths, facts.image_size, 256, 1), options):
        whole.append(torch.cat([tokens.mean(dim=1) for tokens in outputs], dim=1))
        b, n, d = outputs[-1].shape
        side = round(n**0.5)
        square = outputs[-1].transpose(1, 2).reshape(b, d, side, side)
        grids.append(F.adaptive_avg_pool2d(square, min(GRID, side)).flatten(1))
    return torch.cat(whole), torch.cat(grids)


def score(encoder: torch.nn.Module, facts: Any, paths: tuple[str, str], max_train: int, max_test: int) -> dict[str, float]:
    """Scores of an encoder in percent; the same evenly spaced images for every run."""
    pair = read_pair(*paths, ScanOptions())
    sets = []
    for part, most in ((pair.train, max_train), (pair.test, max_test)):
        chosen = torch.linspace(0, len(part.labels) - 1, min(most, len(part.labels))).long()
        sets.append((*pooled(encoder, facts, [part.paths[int(i)] for i in chosen]), part.labels[chosen]))
    (a, a_grid, a_labels), (b, b_grid, b_labels) = sets
    d = facts.size.width
    return {
        "20-NN": knn.evaluate(a[:, -d:], a_labels, b[:, -d:], b_labels, k=(min(20, len(a)),)).popitem()[1],
        "linear": linear.evaluate(a[:, -d:], a_labels, b[:, -d:], b_labels)["top1"],
        "last 4": linear.evaluate(a, a_labels, b, b_labels)["top1"],
        "patches": linear.evaluate(a_grid, a_labels, b_grid, b_labels, max_iterations=300)["top1"],
    }
