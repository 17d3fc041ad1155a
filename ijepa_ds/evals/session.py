"""Features of one encoder on training and test images, computed once and shared between ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ijepa_ds.distributed.exchange import broadcast_object
from ijepa_ds.evals.cache import FeatureCache, digest_of, encoder_identity, images_identity
from ijepa_ds.evals.features import ForwardOptions, extract, forward, num_layers
from ijepa_ds.evals.folders import Labelled, Pair, batches, crop_batches
from ijepa_ds.evals.ranks import ALONE, World, agree, gather_rows
from ijepa_ds.evals.settings import CELLS, Settings
from ijepa_ds.terminal import track

logger = logging.getLogger(__name__)
CROP_SCALE = (0.08, 1.0)  # of augmented training images, as usual for linear probes
VIEW_SCALE = (0.3, 1.0)  # of views for LiDAR: as in I-JEPA's training crops


def filled_text(filled: Mapping[str, int]) -> str:
    """How many images had values without data, of `Session.filled`."""
    return f"{len(filled):,} images have {sum(filled.values()):,} values without data, filled with data.mean"


class Session:
    """Computes and caches features. Every rank calls the methods that read images; only rank 0 gets the results."""

    def __init__(
        self, encoder: nn.Module, pair: Pair, settings: Settings, label: str = "encoder", world: World = ALONE
    ) -> None:
        """Prepare; `label` names the encoder in progress bars; without one, segment and depth show none."""
        self.encoder, self.pair, self.settings, self.label, self.world = encoder, pair, settings, label, world
        self.layers = num_layers(encoder)
        self._kept: dict[tuple[str, bool], tuple[int, Tensor | None]] = {}
        self.cache = FeatureCache(Path(settings.cache), settings.cache_gib) if settings.cache else None
        self.from_cache: list[str] = []  # the sets whose features an earlier evaluation has computed
        self._identity: str | None = None
        self._cells = CELLS.get(settings.pool, 1)
        self.filled: dict[str, int] = {}  # image -> values without data that were filled
        self.known: Mapping[str, Tensor] | None = None  # of segment and depth: path -> tokens that are computed already
        self.beat: Callable[[], None] = lambda: None  # called while heads of segment and depth are trained and scored

    @property
    def is_rank_zero(self) -> bool:
        """Whether this rank gets features and scores them."""
        return self.world.rank == 0

    def pooled(self, part: str, layers: int = 1, mirrored: bool = False) -> Tensor | None:
        """Average-pooled features of the last `layers` layers, as `Settings.pool` says.

        Args:
            part: `train` or `test`.
            layers: L.
            mirrored: flip the images horizontally.

        Returns:
            float32 [n, L * D] on rank 0, None on the others; D is 16 times the encoder's width with the pool `grid4`.
        """
        known, kept = self._kept.get((part, mirrored), (0, None))
        if known < layers:
            digest = self._digest(part, layers, mirrored)
            hit, kept = self._cached(digest, part)
            if not hit:
                kept = self._computed(part, layers, mirrored)
                if self.cache and digest and kept is not None:
                    self.cache.keep(digest, kept)
            known = layers
            self._kept[part, mirrored] = known, kept
        return None if kept is None else kept[:, -(kept.shape[1] // known) * layers :]

    def _computed(self, part: str, layers: int, mirrored: bool) -> Tensor | None:
        images = self._part(part)
        mine = self.world.share(len(images.labels))
        read: Iterable[np.ndarray] = self._batches(_cut(images.paths, mine)) if len(mine) else ()
        if mirrored:
            read = (batch[:, :, ::-1].copy() for batch in read)
        what = f"{part}, mirrored" if mirrored else part
        return self._gathered(read, len(mine), len(images.labels), layers, what)

    def _digest(self, part: str, layers: int, mirrored: bool) -> str | None:
        """Name of features in the cache, on rank 0; None without a cache."""
        if self.cache is None or not self.is_rank_zero:
            return None
        if self._identity is None:
            self._identity = encoder_identity(self.encoder)
        s = self.settings
        reading = {"size": s.size, "frame": s.frame, "mean": s.mean, "std": s.std, "max_pixels": s.max_pixels}
        if not s.values.plain or s.values.layout:
            reading["values"] = asdict(s.values)
        if self._cells > 1:
            reading["cells"] = self._cells
        computing = {"precision": s.precision, "device": torch.device(s.device).type, "layers": layers, "mirrored": mirrored}
        try:
            images = images_identity(self._part(part).paths)
        except OSError:  # an image is gone: reading it names it, on every rank
            return None
        return digest_of(reading | computing | {"encoder": self._identity, "images": images})

    def _cached(self, digest: str | None, part: str) -> tuple[bool, Tensor | None]:
        """Whether rank 0 has found the features in the cache, on every rank; and the features, on rank 0."""
        kept = self.cache.find(digest, len(self._part(part).labels)) if self.cache and digest else None
        if kept is not None and self.cache:
            logger.info("%s, %s: features of an earlier evaluation (%s)", self.label, part, self.cache.folder)
            self.from_cache.append(part)
        hit = kept is not None
        if self.world.size > 1 and self.settings.cache:
            hit = broadcast_object(hit, dist.group.WORLD)
        return hit, kept

    def cropped(self, part: str, positions: Sequence[int], seed: int, layers: int, scale: tuple[float, float]) -> Tensor | None:
        """Average-pooled features of one random crop, flipped at random, of each image.

        Args:
            part: `train` or `test`.
            positions: of k images.
            seed: of the crops, which are functions of seed and position.
            layers: L.
            scale: smallest and largest area of a crop.

        Returns:
            float32 [k, L * D] on rank 0, None on the others.
        """
        images = self._part(part)
        mine = self.world.share(len(positions))
        chosen = [positions[i] for i in mine]
        read = crop_batches(images.paths, chosen, *self._reading(), seed=seed, scale=scale) if chosen else iter(())
        return self._gathered(read, len(mine), len(positions), layers, f"{part}, crops {seed}")

    def tokens(self, part: str, order: Tensor) -> Iterator[Tensor]:
        """Compute output tokens of images in a given order, on the device.

        Args:
            part: `train` or `test`, of n images.
            order: of the images; i + n is the mirror image of i.

        Yields:
            [B, N, D].
        """
        images, s = self._part(part), self.settings
        total = len(images.labels)
        mirrored = (order >= total).split(s.batch_size)
        read = (
            np.where(flip.numpy()[:, None, None, None], batch[:, :, ::-1], batch)
            for flip, batch in zip(mirrored, self._batches([images.paths[int(i) % total] for i in order]), strict=True)
        )
        for outputs in forward(self.encoder, read, ForwardOptions(s.mean, s.std, s.device, s.dtype)):
            yield outputs[-1].float()

    def _part(self, part: str) -> Labelled:
        return self.pair.train if part == "train" else self.pair.test

    def _batches(self, paths: Sequence[str]) -> Iterator[np.ndarray]:
        s = self.settings
        return batches(paths, *self._reading(), whole=s.frame == "whole", values=s.values, filled=self.filled)

    def _reading(self) -> tuple[int, int, int, int]:
        s = self.settings
        return s.size, s.batch_size, s.threads, s.max_pixels

    def _gathered(self, read: Iterable[np.ndarray], mine: int, total: int, layers: int, what: str) -> Tensor | None:
        s = self.settings
        bar = track(
            read,
            f"{self.label}, {what}",
            "batches",
            total=-(-mine // s.batch_size),
            show=self.is_rank_zero and bool(self.label),
        )

        def work() -> Tensor:
            if not mine:  # fewer images than ranks
                return torch.empty(0, self._width() * layers)
            return extract(self.encoder, bar, s.mean, s.std, s.device, s.dtype, layers, self._cells)

        return gather_rows(agree(work, self.world), total, self.world)

    def _width(self) -> int:
        blank = np.zeros((1, self.settings.size, self.settings.size, len(self.settings.mean)), dtype=np.uint8)
        s = self.settings
        return extract(self.encoder, [blank], s.mean, s.std, s.device, cells=self._cells).shape[1]


def _cut(paths: Sequence[str], share: range) -> Sequence[str]:
    return [paths[i] for i in share]
