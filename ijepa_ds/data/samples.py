"""What each micro-batch holds: which images, cropped where, mirrored or not; stand-ins for bad files."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from ijepa_ds.config import DataConfig
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.index import ImageFolder, describe
from ijepa_ds.data.order import sample_indices

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of the global batches is one rank's.

    Micro-batch i of rank r holds positions (i * world_size + r) * micro_batch onwards of the global batch.
    """

    rank: int
    world_size: int
    micro_batch: int
    accumulation: int

    @property
    def batch_size(self) -> int:
        """Images in a global batch."""
        return self.world_size * self.accumulation * self.micro_batch

    def numbers(self, micro: int) -> np.ndarray:
        """Return the global sample numbers, int64 [B], of a micro-batch counted from the run's first."""
        step, i = divmod(micro, self.accumulation)
        first = step * self.batch_size + (i * self.world_size + self.rank) * self.micro_batch
        return np.arange(first, first + self.micro_batch, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """One micro-batch: indices int64 [B], windows int32 [B, 4] (top, left, height, width), flips bool [B]."""

    indices: np.ndarray
    windows: np.ndarray
    flips: np.ndarray


class SamplePlan:
    """Maps micro-batches to samples: a function of the seed, the number and which files are readable.

    The stand-in of an unreadable image is the next readable one of the index. So ranks need not tell each
    other what they found: whoever meets the file comes to the same substitute.

    Attributes:
        folder: The index.
        share: The rank's part of the global batches.
        bad: (path, reason) of the images found unreadable so far, by this rank.
    """

    def __init__(self, cfg: DataConfig, folder: ImageFolder, *, seed: int, share: Share) -> None:
        """Plan for one rank's `share` of the batches of a run with this `seed`."""
        self.folder, self.share = folder, share
        self.bad: list[tuple[str, str]] = []
        self._cfg, self._seed = cfg, seed
        self._rejected: set[int] = set()

    def samples(self, micro: int) -> Samples:
        """Return the samples of a micro-batch counted from the run's first."""
        numbers = self.share.numbers(micro)
        indices = sample_indices(numbers, len(self.folder), self._seed)
        if self._rejected:
            indices = np.array([self._stand_in(index) for index in indices.tolist()], dtype=np.int64)
        width, height = self.folder.sizes[indices].T
        cfg = self._cfg
        windows = crop_windows(width, height, numbers, self._seed, cfg.crop_scale, cfg.crop_ratio)
        flip = flips(numbers, self._seed) if cfg.horizontal_flip else np.zeros(len(numbers), dtype=bool)
        return Samples(indices=indices, windows=windows, flips=flip)

    def reject(self, index: int, reason: str) -> None:
        """Record an image as unreadable; from now on another one stands in for it.

        Raises:
            ValueError: when there are more than data.max_bad of them, or no image is left.
        """
        if index in self._rejected:
            return
        self._rejected.add(index)
        self.bad.append((self.folder.paths[index], reason))
        logger.warning("unreadable image replaced by the next one: %s", describe(self.bad[-1:]))
        if len(self.bad) > self._cfg.max_bad:
            raise ValueError(
                f"{len(self.bad)} images of {self.folder.source!r} could not be read, more than "
                f"data.max_bad = {self._cfg.max_bad}; mend or remove them, or raise data.max_bad: "
                f"{describe(self.bad)}"
            )
        if len(self.bad) == len(self.folder):
            raise ValueError(
                f"none of the images of {self.folder.source!r} can be read: {describe(self.bad)}"
            )

    def _stand_in(self, index: int) -> int:
        while index in self._rejected:
            index = (index + 1) % len(self.folder)
        return index
