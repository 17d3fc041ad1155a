"""One encoder at work on one pair of image sets: its features, computed once, by all ranks together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ijepa_ds.evals.features import ForwardOptions, extract, forward, num_layers
from ijepa_ds.evals.folders import Labelled, Pair, batches, crop_batches
from ijepa_ds.evals.ranks import ALONE, World, agree, gather_rows
from ijepa_ds.evals.settings import Settings

CROP_SCALE = (0.08, 1.0)  # of augmented training images, as in the field's linear probes
VIEW_SCALE = (0.3, 1.0)  # of the views for LiDAR: the crops that I-JEPA trains on


class Session:
    """Features on demand. Methods that read images are called by every rank; what they give is on rank 0 only."""

    def __init__(
        self, encoder: nn.Module, pair: Pair, settings: Settings, label: str = "encoder", world: World = ALONE
    ) -> None:
        """Nothing is computed yet; `label` is what progress bars call the encoder."""
        self.encoder, self.pair, self.settings, self.label, self.world = encoder, pair, settings, label, world
        self.layers = num_layers(encoder)
        self._kept: dict[tuple[str, bool], tuple[int, Tensor | None]] = {}

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which scores."""
        return self.world.rank == 0

    def pooled(self, part: str, layers: int = 1, mirrored: bool = False) -> Tensor | None:
        """Average-pooled features of the last `layers` layers.

        Args:
            part: `train` or `test`.
            layers: L.
            mirrored: of the images flipped left to right.

        Returns:
            float32 [n, L * D] on rank 0, None on the others.
        """
        known, kept = self._kept.get((part, mirrored), (0, None))
        if known < layers:
            images = self._part(part)
            mine = self.world.share(len(images.labels))
            read: Iterable[np.ndarray] = batches(_cut(images.paths, mine), *self._reading()) if len(mine) else ()
            if mirrored:
                read = (batch[:, :, ::-1].copy() for batch in read)
            what = f"{part}, mirrored" if mirrored else part
            known, kept = layers, self._gathered(read, len(mine), len(images.labels), layers, what)
            self._kept[part, mirrored] = known, kept
        return None if kept is None else kept[:, -(kept.shape[1] // known) * layers :]

    def cropped(self, part: str, positions: Sequence[int], seed: int, layers: int, scale: tuple[float, float]) -> Tensor | None:
        """The same of one random crop, flipped or not, of each image that is asked for.

        Args:
            part: `train` or `test`.
            positions: k, of images.
            seed: of the crops; they are functions of it and of the position alone.
            layers: L.
            scale: least and greatest area of a crop.

        Returns:
            float32 [k, L * D] on rank 0, None on the others.
        """
        images = self._part(part)
        mine = self.world.share(len(positions))
        chosen = [positions[i] for i in mine]
        read = crop_batches(images.paths, chosen, *self._reading(), seed=seed, scale=scale) if chosen else iter(())
        return self._gathered(read, len(mine), len(positions), layers, f"{part}, crops {seed}")

    def tokens(self, part: str, order: Tensor) -> Iterator[Tensor]:
        """Output tokens of images in an order, on the device, from memory or anew.

        Yields:
            [B, N, D].
        """
        images, s = self._part(part), self.settings
        read = batches([images.paths[int(i)] for i in order], *self._reading())
        for outputs in forward(self.encoder, read, ForwardOptions(s.mean, s.std, s.device, s.dtype)):
            yield outputs[-1].float()

    def _part(self, part: str) -> Labelled:
        return self.pair.train if part == "train" else self.pair.test

    def _reading(self) -> tuple[int, int, int]:
        return self.settings.size, self.settings.batch_size, self.settings.threads

    def _gathered(self, read: Iterable[np.ndarray], mine: int, total: int, layers: int, what: str) -> Tensor | None:
        s = self.settings
        bar = tqdm(
            read, desc=f"{self.label}, {what}", total=-(-mine // s.batch_size), unit="batch",
            disable=None if self.leads else True, leave=False,
        )  # fmt: skip

        def work() -> Tensor:
            if not mine:  # fewer images than ranks
                return torch.empty(0, self._width() * layers)
            return extract(self.encoder, bar, s.mean, s.std, s.device, s.dtype, layers)

        return gather_rows(agree(work, self.world), total, self.world)

    def _width(self) -> int:
        blank = np.zeros((1, self.settings.size, self.settings.size, 3), dtype=np.uint8)
        return extract(self.encoder, [blank], self.settings.mean, self.settings.std, self.settings.device).shape[1]


def _cut(paths: Sequence[str], share: range) -> Sequence[str]:
    return [paths[i] for i in share]
