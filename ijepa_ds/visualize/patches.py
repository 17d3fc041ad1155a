"""Analysis of patch features: principal components as colours, similarity to one patch, agreement of predictions."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from torch import Tensor

_PERCENTILES = (2.0, 98.0)  # of a component; values outside are clipped


def without_position(tokens: Tensor) -> Tensor:
    """Subtract from every patch the mean over images at its position.

    Args:
        tokens: [B, N, D].

    Raises:
        ValueError: fewer than 4 images.
    """
    if len(tokens) < 4:
        raise ValueError(f"--remove-position: the mean over {len(tokens)} images is not meaningful; give at least 4 (--num)")
    return tokens - tokens.mean(dim=0, keepdim=True)


def pca_colours(tokens: Tensor, foreground: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """First three principal components of all patches, as red, green and blue.

    With `foreground`, 2-means on the first component splits the patches. The part with fewer patches on image borders is
    the foreground; components are computed on the foreground only (as for DINOv2, Oquab et al. 2023).

    Args:
        tokens: [B, N, D], N = G * G.
        foreground: colour only the foreground.

    Returns:
        float64 [B, G, G, 3] in 0 .. 1 (background: 0), and the foreground mask, bool [B, G, G].
    """
    b, n, d = tokens.shape
    grid = round(n**0.5)
    flat = tokens.reshape(b * n, d).double().cpu().numpy()
    shown = np.ones(b * n, dtype=bool)
    if foreground:
        first = PCA(1, svd_solver="full").fit_transform(flat)
        part = KMeans(2, n_init=4, random_state=0).fit_predict(first).astype(bool)
        border = np.zeros((b, grid, grid), dtype=bool)
        border[:, [0, -1], :] = border[:, :, [0, -1]] = True
        edge = border.reshape(-1)
        shares = [(part == side)[edge].sum() / max(1, (part == side).sum()) for side in (False, True)]
        shown = part == bool(np.argmin(shares))
        if shown.sum() < 4:
            shown = np.ones(b * n, dtype=bool)
    count = min(3, d, int(shown.sum()))
    found = PCA(count, svd_solver="full").fit_transform(flat[shown])
    low, high = np.percentile(found, _PERCENTILES, axis=0)
    colours = np.zeros((b * n, 3))
    colours[shown, :count] = np.clip((found - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colours.reshape(b, grid, grid, 3), shown.reshape(b, grid, grid)


def similarity_to(tokens: Tensor, patch: int) -> np.ndarray:
    """Cosine similarity of one patch of each image to all its patches.

    Args:
        tokens: [B, N, D].
        patch: its number in raster order.

    Returns:
        float64 [B, G, G].
    """
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    values = (unit @ unit[:, patch, :, None]).squeeze(-1)
    grid = round(tokens.shape[1] ** 0.5)
    return values.reshape(len(tokens), grid, grid).cpu().numpy()


def agreement(prediction: Tensor, whole: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Cosine of predicted and true representations, and of predictions and other images at the same patches.

    Args:
        prediction: [B, M, Kt, D], of one context.
        whole: [B, N, D], the true representations of every patch.
        targets: int64 [B, M, Kt], the predicted patches.

    Returns:
        own float64 [B, M, Kt]; others [B, M, Kt], the mean over the other images (None for B = 1): the part that position and
        the average image explain.
    """
    p, t = (torch.nn.functional.normalize(x.double(), dim=-1) for x in (prediction, whole))
    own, others = torch.empty(targets.shape, dtype=torch.float64), torch.empty(targets.shape, dtype=torch.float64)
    for i in range(len(p)):
        cosine = torch.einsum("mkd,bmkd->bmk", p[i], t[:, targets[i]])  # against every image [B, M, Kt]
        own[i] = cosine[i]
        others[i] = (cosine.sum(dim=0) - cosine[i]) / max(1, len(p) - 1)
    return own.numpy(), others.numpy() if len(p) > 1 else None
