"""Linear probe on frozen features: multinomial logistic regression by scikit-learn."""

from __future__ import annotations

import logging
import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

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
    """Top-1 accuracy in percent; features standardised by the training set's mean and deviation.

    Args:
        train_features: `[n, D]`.
        train_labels: int64 `[n]`.
        test_features: `[m, D]`.
        test_labels: int64 `[m]`.
        c: inverse strength of the L2 penalty, scikit-learn's C.
        max_iterations: of L-BFGS.

    Returns:
        {"linear": percent, "linear_train": percent}.
    """
    mean, std = train_features.mean(dim=0), train_features.std(dim=0).clamp(min=1e-8)
    train, test = ((x - mean) / std for x in (train_features, test_features))
    probe = LogisticRegression(C=c, max_iter=max_iterations)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe.fit(train.numpy(), train_labels.numpy())
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        logger.warning("the linear probe did not converge in %d iterations", max_iterations)
    return {
        "linear": 100.0 * float(probe.score(test.numpy(), test_labels.numpy())),
        "linear_train": 100.0 * float(probe.score(train.numpy(), train_labels.numpy())),
    }
