"""Linear probe: multinomial logistic regression on frozen features, solved to convergence."""

from __future__ import annotations

import logging
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from ijepa_ds.evals.features import check_features

logger = logging.getLogger(__name__)


def evaluate(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    c: float = 1.0,
    max_iterations: int = 2000,
) -> dict[str, float]:
    """Fit on the training features and score on the test features; the result is deterministic.

    Features are standardised by the training set's mean and standard deviation. The problem is convex: no
    learning rate or seed is needed. scikit-learn's L-BFGS solves it in float64 on the CPU.

    Args:
        train_features: [n, D].
        train_labels: int64 [n], from 0; at least two classes.
        test_features: [m, D].
        test_labels: int64 [m].
        c: scikit-learn's C, the inverse of the L2 penalty's strength.
        max_iterations: of L-BFGS; a warning is logged when it does not converge.

    Returns:
        `top1` and `train_top1` in percent, `iterations`, `converged` (1 or 0).

    Raises:
        ValueError: sets that do not match or are not finite, a single class, c not above 0.
    """
    check_features(train_features, train_labels, test_features, test_labels)
    if not c > 0:
        raise ValueError(f"C: expected a number above 0, got {c}")
    y, test_y = train_labels.cpu().numpy(), test_labels.cpu().numpy()
    if len(np.unique(y)) < 2:
        raise ValueError("the training images have a single class: a classifier needs at least two")
    x, test_x = standardise(train_features.cpu().double().numpy(), test_features.cpu().double().numpy())
    logger.info("linear: fitting %s images of %d numbers; it has no progress bar", f"{len(x):,}", x.shape[1])
    model = LogisticRegression(C=c, max_iter=max_iterations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, y)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    if not converged:
        logger.warning(
            "linear: not converged after %d iterations, the score is not final: allow more, or a smaller C",
            max_iterations,
        )
    return {
        "top1": 100 * float(np.mean(model.predict(test_x) == test_y)),
        "train_top1": 100 * float(np.mean(model.predict(x) == y)),
        "iterations": float(np.max(model.n_iter_)),
        "converged": float(converged),
    }


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Standardise arrays [n, D] by the mean and standard deviation of `train`; returns `train` first."""
    mean, std = train.mean(axis=0), train.std(axis=0)
    std[std <= 1e-6 * np.abs(mean)] = 1.0  # constant up to float32 rounding: do not amplify noise
    return [(part - mean) / std for part in (train, *others)]
