"""The samples of each micro-batch: images, crop windows and flips, with replacements of unreadable images."""

from __future__ import annotations

import itertools
import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ijepa_ds.config import DataConfig
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.image_order import ImageOrder
from ijepa_ds.data.index import ImageIndex, describe
from ijepa_ds.data.order import stand_ins
from ijepa_ds.data.pillow import check_pixels
from ijepa_ds.data.rasters import Window, read_window
from ijepa_ds.data.reading import Reader
from ijepa_ds.data.values import Values
from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)
_PROBES = 1024  # images whose length is looked at
_SLACK = 1.25  # row groups at the ends of a window, and those of the window before


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's share of the global batches.

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
        """Return the global sample numbers of a micro-batch, int64 [B]; micro-batch 0 is the run's first."""
        step, i = divmod(micro, self.accumulation)
        first = step * self.batch_size + (i * self.world_size + self.rank) * self.micro_batch
        return np.arange(first, first + self.micro_batch, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The samples of one micro-batch.

    Attributes:
        indices: int64 [B], positions in the index.
        windows: int32 [B, 4], (top, left, height, width) in pixels.
        flips: bool [B].
    """

    indices: np.ndarray
    windows: np.ndarray
    flips: np.ndarray


class SamplePlan:
    """The mapping from micro-batches to samples: a function of the seed, the number and the set of unreadable images.

    A readable image of the same source replaces an unreadable one. It is drawn by a hash of the sample number, and so is the
    window. All ranks therefore choose the same stand-in, the stand-ins of adjacent images differ, and no other sample changes.

    Attributes:
        index: The images.
        share: The rank's share of the global batches.
        reader: Reads the files.
        found: Position -> reason of the images that this rank found unreadable; excludes those marked in the index.
    """

    def __init__(
        self, cfg: DataConfig, index: ImageIndex, *, seed: int, share: Share, bad: Mapping[int, str] | None = None
    ) -> None:
        """Plan one rank's share of the batches of a run.

        Args:
            cfg: Crops, flips, limits of unreadable images.
            index: The images.
            seed: The run's seed.
            share: The rank's share.
            bad: Position -> reason of images already known to be unreadable.
        """
        self.index, self.share = index, share
        self.reader = Reader(index, cfg.storage_timeout, cfg.parquet_cache)
        self.found: dict[int, str] = {}
        check_row_groups(cfg, index)
        self._cfg, self._seed, self._order, self._values = cfg, seed, ImageOrder(cfg, index, seed), Values.of(cfg)
        self._bad = {**index.bad, **(bad or {})}
        self._ends = np.cumsum([part.count for part in index.parts])  # of the sources
        self._lock = threading.Lock()

    def samples(self, micro: int) -> Samples:
        """Return the samples of a micro-batch; micro-batch 0 is the run's first."""
        numbers = self.share.numbers(micro)
        indices = self.indices(numbers)
        entries = self.index.rows(indices)
        cfg = self._cfg
        windows = crop_windows(entries["width"], entries["height"], numbers, self._seed, cfg.crop_scale, cfg.crop_ratio)
        flip = flips(numbers, self._seed) if cfg.horizontal_flip else np.zeros(len(numbers), dtype=bool)
        return Samples(indices=indices, windows=windows, flips=flip)

    def indices(self, numbers: np.ndarray) -> np.ndarray:
        """The images that global sample numbers show, stand-ins included; int64 [n] to int64 [n]."""
        indices = self._order.indices(numbers)
        if self._bad:
            for place, index in enumerate(indices.tolist()):
                if index in self._bad:
                    indices[place] = self._stand_in(int(numbers[place]), index)
        return indices

    @property
    def num_bad(self) -> int:
        """How many images are known to be unreadable; `samples` may change when it grows."""
        return len(self._bad)

    def read(self, position: int, window: np.ndarray) -> bytes | Window:
        """Read the bytes of an image; of a large TIFF or NumPy file only a window, int [4] (top, left, height, width).

        Raises:
            ValueError: It changed since it was indexed, or is larger than `data.max_pixels`.
            OSError: The read fails.
        """
        entry = self.index.rows([position])[0]
        check_pixels(int(entry["width"]), int(entry["height"]), self._cfg.max_pixels)
        values = self._values
        if not values.plain:
            part = self.reader.read_raster(position, lambda file: read_window(file, values.layout, window, values.chosen))
            if part is not None:
                return part
        return self.reader.read(position)

    def add(self, bad: Mapping[int, str]) -> None:
        """Mark images that other ranks found unreadable; prefetched batches do not change."""
        with self._lock:
            self._bad |= bad

    def reject(self, index: int, reason: str) -> None:
        """Mark an image as unreadable, so that later samples replace it.

        Raises:
            ValueError: Too many images are unreadable.
        """
        with self._lock:
            if index in self._bad:
                return
            self.found[index] = self._bad[index] = reason
        logger.warning("unreadable image replaced by others: %s", describe([(self.index.display_path(index), reason)]))
        check_limits(self._cfg, self.index, self._bad)

    def _stand_in(self, number: int, index: int) -> int:
        """The image that replaces an unreadable one in sample `number`."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        count = self.index.parts[part].count
        first = int(self._ends[part]) - count
        for chosen in (first + stand_ins(number, count, self._seed)).tolist():
            if chosen not in self._bad:
                return chosen
        # nearly the whole source is unreadable: the next one of it, or of all
        within = (first + (index - first + step) % count for step in range(count))
        anywhere = ((index + step) % len(self.index) for step in range(len(self.index)))
        return next(chosen for chosen in itertools.chain(within, anywhere) if chosen not in self._bad)


def check_row_groups(cfg: DataConfig, index: ImageIndex) -> None:
    """Check that the row groups of a shuffle window of parquet fit into memory; else each image would read one again.

    Raises:
        UserError: Names the sizes that fit.
    """
    if cfg.order != "shards" or not any(container.column for container in index.containers):
        return
    lengths = index.rows(np.linspace(0, len(index) - 1, _PROBES).astype(np.int64))["num_bytes"]  # not all: see ImageIndex.file
    window = min(cfg.shuffle_window, len(index))
    mean = max(1.0, float(lengths.mean())) * _SLACK / 2**20  # MiB an image
    if window * mean > cfg.parquet_cache:
        raise UserError(
            f"data.parquet_cache: {cfg.parquet_cache} MiB hold fewer row groups than a shuffle window of {window:,} images of "
            f"{lengths.mean() / 1024:,.0f} KiB touches, so row groups would be read again and again: set it to at least "
            f"{math.ceil(window * mean)}, or data.shuffle_window to at most {max(1, int(cfg.parquet_cache / mean)):,}"
        )


def check_limits(cfg: DataConfig, index: ImageIndex, bad: Mapping[int, str]) -> None:
    """Check the number of unreadable images; data.max_bad_share < 1 ensures that at least one is readable.

    `data.max_bad` limits those found while training, a number or below 1 a share; the scan's own are known and not counted.

    Raises:
        UserError: Names the exceeded limit and all unreadable images.
    """
    share = len(bad) / len(index)
    found = sum(position not in index.bad for position in bad)
    limit = cfg.max_bad if cfg.max_bad >= 1 else cfg.max_bad * len(index)
    over = [f"data.max_bad = {cfg.max_bad} ({found} found since the scan)"] if found > limit else []
    if share > cfg.max_bad_share:
        over.append(f"data.max_bad_share = {cfg.max_bad_share:g} ({share:.2%} of {len(index)})")
    if over:
        every = "\n  ".join(f"{index.display_path(at)!r}: {reason}" for at, reason in sorted(bad.items()))
        raise UserError(
            f"{len(bad)} images of {index.source!r} cannot be read, more than {' and '.join(over)}; repair them, exclude them "
            f"with `ijepa-ds data check --fix-index`, or raise the limit:\n  {every}"
        )
