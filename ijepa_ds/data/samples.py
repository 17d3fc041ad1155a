"""What each micro-batch holds: which images, cropped where, mirrored or not; stand-ins for bad files."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ijepa_ds.config import DataConfig
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.index import ImageIndex, describe
from ijepa_ds.data.order import mixed_indices, sample_indices
from ijepa_ds.data.reading import Reader

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
    """Maps micro-batches to samples: a function of the seed, the number and which images are readable.

    The stand-in of an unreadable image is the next readable one of the index, under the window drawn for this sample.
    So whoever meets the file comes to the same substitute, and no other sample changes.

    Attributes:
        index: The images.
        share: The rank's part of the global batches.
        reader: Reads their bytes.
        found: Position -> reason of the images found unreadable by this rank, those the index knows left out.
    """

    def __init__(
        self, cfg: DataConfig, index: ImageIndex, *, seed: int, share: Share, bad: Mapping[int, str] | None = None
    ) -> None:
        """Plan for one rank's `share` of the batches of a run with this `seed`; `bad` was found before."""
        self.index, self.share = index, share
        self.reader = Reader(index)
        self.found: dict[int, str] = {}
        self._cfg, self._seed = cfg, seed
        self._bad = {**index.bad, **(bad or {})}
        self._lock = threading.Lock()

    def samples(self, micro: int) -> Samples:
        """Return the samples of a micro-batch counted from the run's first."""
        numbers = self.share.numbers(micro)
        indices = planned(self.index, numbers, self._seed)
        if self._bad:
            indices = np.array([self._stand_in(index) for index in indices.tolist()], dtype=np.int64)
        entries = self.index.rows(indices)
        cfg = self._cfg
        windows = crop_windows(entries["width"], entries["height"], numbers, self._seed, cfg.crop_scale, cfg.crop_ratio)
        flip = flips(numbers, self._seed) if cfg.horizontal_flip else np.zeros(len(numbers), dtype=bool)
        return Samples(indices=indices, windows=windows, flips=flip)

    def add(self, bad: Mapping[int, str]) -> None:
        """Learn what other ranks found; batches decoded ahead keep what they have."""
        with self._lock:
            self._bad |= bad

    def reject(self, index: int, reason: str) -> None:
        """Record an image as unreadable; from now on another one stands in for it.

        Raises:
            ValueError: when that is too many.
        """
        with self._lock:
            if index in self._bad:
                return
            self.found[index] = self._bad[index] = reason
        logger.warning("unreadable image replaced by the next one: %s", describe([(self.index.shown(index), reason)]))
        check_limits(self._cfg, self.index, self._bad)

    def _stand_in(self, index: int) -> int:
        while index in self._bad:
            index = (index + 1) % len(self.index)
        return index


def planned(index: ImageIndex, numbers: np.ndarray, seed: int) -> np.ndarray:
    """Tell which image each global sample number is, before stand-ins; both int64 [n]."""
    weights = [part.weight for part in index.parts if part.weight is not None]
    if weights:
        return mixed_indices(numbers, [part.count for part in index.parts], weights, seed)
    return sample_indices(numbers, len(index), seed)


def listed(index: ImageIndex, bad: Mapping[int, str]) -> list[tuple[str, str]]:
    """(path, reason) of unreadable images by position."""
    return [(index.shown(position), reason) for position, reason in sorted(bad.items())]


def check_limits(cfg: DataConfig, index: ImageIndex, bad: Mapping[int, str]) -> None:
    """Refuse to go on with too many unreadable images; data.max_bad_share < 1 leaves one that can stand in.

    Raises:
        ValueError: naming the limit and all of them.
    """
    share = len(bad) / len(index)
    over = [f"data.max_bad = {cfg.max_bad}"] if len(bad) > cfg.max_bad else []
    if share > cfg.max_bad_share:
        over.append(f"data.max_bad_share = {cfg.max_bad_share:g} ({share:.2%} of {len(index)})")
    if over:
        every = "\n  ".join(f"{path!r}: {reason}" for path, reason in listed(index, bad))
        raise ValueError(
            f"{len(bad)} images of {index.source!r} cannot be read, more than {' and '.join(over)}; mend them, leave them out "
            f"with `ijepa-ds data check --fix-index`, or raise the limit:\n  {every}"
        )
