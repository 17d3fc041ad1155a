"""Scores of segmentations and depth maps, as sums that ranks can add."""

from __future__ import annotations

import torch
from torch import Tensor

_DELTA = 1.25  # a depth counts for delta1 if it is within this factor


class Confusion:
    """Pixels by true class (rows) and predicted class (columns).

    Attributes:
        counts: int64 [C, C].
    """

    def __init__(self, classes: int) -> None:
        """Start with no pixels."""
        self.counts = torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Count pixels.

        Args:
            truth: integer [...], below 0 where a pixel is ignored.
            predicted: integer [...], 0 to C - 1.
        """
        classes = len(self.counts)
        valid = truth >= 0
        places = truth[valid].long() * classes + predicted[valid].long()
        self.counts += torch.bincount(places, minlength=classes**2).view(classes, classes)

    def iou(self) -> Tensor:
        """Intersection over union of each class in percent, float64 [C]; NaN for a class that no pixel has or gets."""
        hit = self.counts.diagonal().double()
        union = self.counts.sum(0) + self.counts.sum(1) - self.counts.diagonal()
        return 100 * hit / union  # 0 / 0 is NaN

    def scores(self) -> dict[str, float]:
        """`mIoU`, over classes that a pixel has or gets, and `pixel accuracy`, in percent."""
        iou = self.iou()
        accuracy = 100 * self.counts.diagonal().sum() / self.counts.sum()
        return {"mIoU": float(iou[~iou.isnan()].mean()), "pixel accuracy": float(accuracy)}


class DepthErrors:
    """Sums over valid pixels.

    Attributes:
        sums: float64 [4]: pixels, squared errors, relative errors, pixels within a factor of 1.25.
    """

    def __init__(self) -> None:
        """Start with no pixels."""
        self.sums = torch.zeros(4, dtype=torch.float64)

    def add(self, truth: Tensor, predicted: Tensor) -> None:
        """Add pixels.

        Args:
            truth: float [...], 0 where a pixel is ignored.
            predicted: float [...], above 0.
        """
        valid = truth > 0
        t, p = truth[valid].double(), predicted[valid].double()
        within = torch.maximum(p / t, t / p) < _DELTA
        self.sums += torch.stack([torch.tensor(len(t)), (p - t).square().sum(), ((p - t).abs() / t).sum(), within.sum()])

    def scores(self) -> dict[str, float]:
        """`RMSE` in units of the depth, `AbsRel`, and `delta1` in percent, over all pixels of all images."""
        pixels, squared, relative, within = self.sums.tolist()
        return {"RMSE": (squared / pixels) ** 0.5, "AbsRel": relative / pixels, "delta1": 100 * within / pixels}
