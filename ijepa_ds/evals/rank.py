"""Effective dimension of frozen features: RankMe, LiDAR and the spectrum. Needs no labels.

Sources: RankMe, Garrido et al. 2023 (arXiv 2210.02885); LiDAR, Thilak et al. 2024 (arXiv 2312.04000).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ijepa_ds.evals.features import check_finite

_RANKME_EPS = 1e-7
_LIDAR_DELTA = 1e-4  # as in the paper: keeps the within-class covariance invertible
SPECTRUM_VALUES = 256  # maximum in a result


def rankme(features: Tensor) -> float:
    """RankMe: exp(entropy of the normalised singular values) of features, not centred.

    Args:
        features: [n, D].

    Returns:
        between 1 (all features on one line) and min(n, D).
    """
    check_finite(features, "the features")
    return _exp_entropy(torch.linalg.svdvals(features.double()), _RANKME_EPS)


def lidar(features: Tensor) -> float:
    """LiDAR: exp(entropy of the eigenvalues of the between-image covariance, whitened by the within-image covariance).

    Args:
        features: [n, q, D], q >= 2 views of each of n >= 2 images.

    Returns:
        between 1 and min(n - 1, D): dimensions that separate images across views.

    Raises:
        ValueError: too few images or views, or features that are not finite.
    """
    if features.ndim != 3 or min(features.shape[:2]) < 2:
        raise ValueError(f"expected features [n, q, D] of at least two images and two views, got {list(features.shape)}")
    check_finite(features.flatten(0, 1), "the features")
    x = features.double()
    n, q, width = x.shape
    centre = x.mean(dim=1)  # [n, D]
    between = centre - centre.mean(dim=0)
    within = (x - centre[:, None]).flatten(0, 1)
    covariance = within.T @ within / (n * (q - 1)) + _LIDAR_DELTA * torch.eye(width, dtype=x.dtype, device=x.device)
    values, vectors = torch.linalg.eigh(covariance)
    whitened = between @ (vectors * values.clamp(min=_LIDAR_DELTA).rsqrt())  # [n, D]
    return _exp_entropy(torch.linalg.svdvals(whitened).square() / (n - 1), 1e-12)


def spectrum(features: Tensor) -> list[float]:
    """Eigenvalues of the feature covariance as shares of their sum, largest first, at most 256.

    Args:
        features: [n, D].
    """
    check_finite(features, "the features")
    x = features.double()
    values = torch.linalg.svdvals(x - x.mean(dim=0)).square()
    return (values / values.sum().clamp(min=1e-300))[:SPECTRUM_VALUES].tolist()


def evaluate(features: Tensor, views: Tensor | None = None) -> dict[str, float]:
    """Compute all measures.

    Args:
        features: [n, D] of different images.
        views: [n', q, D] of views of images, for LiDAR; None: no LiDAR.

    Returns:
        `rankme`, `lidar`, `top_share` (percent of the variance in the first direction).

    Raises:
        ValueError: features that are not finite, or too few views.
    """
    found = {"rankme": rankme(features)}
    if views is not None:
        found["lidar"] = lidar(views)
    return found | {"top_share": 100 * spectrum(features)[0]}


def _exp_entropy(values: Tensor, eps: float) -> float:
    share = values / values.sum().clamp(min=1e-300) + eps
    return float(torch.exp(-(share * share.log()).sum()))
