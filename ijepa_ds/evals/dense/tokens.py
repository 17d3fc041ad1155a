"""Patch tokens of the windows of images: kept in memory if they fit, else computed each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ijepa_ds.data.transforms import read_layers
from ijepa_ds.evals.dense.labels import Reading
from ijepa_ds.evals.dense.pairs import DenseImages
from ijepa_ds.evals.dense.windows import Box, boxes_of, cut, cut_truth, resized
from ijepa_ds.evals.features import ForwardOptions, check_finite, forward
from ijepa_ds.evals.settings import LAYERS, Settings
from ijepa_ds.evals.subject import Pixels
from ijepa_ds.terminal import track


class Patches(nn.Module):
    """Baseline without an encoder: the pixels of each patch are its token."""

    def __init__(self, patch: int) -> None:
        """`patch`: side in pixels."""
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        """`images: [B, C, S, S]` -> [B, N, C * patch**2]."""
        return nn.functional.pixel_unshuffle(images, self.patch).flatten(2).transpose(1, 2).contiguous()


def of_patches(encoder: nn.Module) -> nn.Module:
    """The encoder, or `Patches` for the baseline of raw pixels, which has one token an image."""
    return Patches(encoder.patch_size) if isinstance(encoder, Pixels) else encoder


class Tokens:
    """Tokens and labels of the windows of some images."""

    def __init__(
        self, encoder: nn.Module, images: DenseImages, reading: Reading, settings: Settings, progress: str | None
    ) -> None:
        """Remember what to read; nothing is computed yet.

        Args:
            encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`.
            images: of this rank.
            reading: of their labels.
            settings: of the evaluation.
            progress: label of progress bars; None: no bars.
        """
        self.encoder, self.images, self.reading = encoder, images, reading
        self.settings, self.progress = settings, progress
        self.filled: dict[str, int] = {}  # as `Session.filled`

    def of_image(self, position: int) -> tuple[Tensor, list[Box], tuple[int, int]]:
        """Tokens of one image.

        Returns:
            float32 [T, N, L * D] on the device; the corners of T windows; width and height of the resized image.
        """
        s = self.settings
        windows, boxes, shape = cut(self._layers(position), s.size)
        return self._forward(windows), boxes, shape

    def _layers(self, position: int) -> list[Image.Image]:
        path, s = str(self.images.paths[position]), self.settings
        return read_layers(path, s.max_pixels, s.values, filled=self.filled)

    def _forward(self, windows: np.ndarray) -> Tensor:
        s = self.settings
        batches = (windows[start : start + s.batch_size] for start in range(0, len(windows), s.batch_size))
        options = ForwardOptions(s.mean, s.std, s.device, s.dtype, LAYERS[s.layers or "last"])
        tokens = torch.cat(
            [torch.cat([part.float() for part in outputs], 2) for outputs in forward(self.encoder, batches, options)]
        )
        check_finite(tokens.flatten(1), "the encoder's tokens")
        return tokens

    def truth(self, position: int) -> np.ndarray:
        """Labels of one image at their own size, as `Reading.read` returns them."""
        return self.reading.read(str(self.images.truth[position]))

    def windows(self, positions: Sequence[int], shown: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Compute tokens [T, N, L * D] and labels [T, S, S] of images in a given order, on the CPU.

        Several images share a forward pass.
        """
        bar = track(positions, f"{self.progress}, {shown}", "images", show=bool(self.progress and shown))
        s = self.settings
        waiting: list[tuple[np.ndarray, np.ndarray]] = []

        def ready() -> Iterator[tuple[Tensor, Tensor]]:
            tokens = self._forward(np.concatenate([windows for windows, _ in waiting])).cpu()
            parts = tokens.split([len(windows) for windows, _ in waiting])
            yield from ((part, torch.from_numpy(labels)) for part, (_, labels) in zip(parts, waiting, strict=True))

        for position in bar:
            windows = cut(self._layers(position), s.size)[0]
            waiting.append((windows, cut_truth(self.truth(position), s.size)))
            if sum(len(windows) for windows, _ in waiting) >= s.batch_size:
                yield from ready()
                waiting = []
        if waiting:
            yield from ready()


class ComputedTokens(Tokens):
    """Tokens that are in memory already."""

    def __init__(self, known: Mapping[str, Tensor], images: DenseImages, reading: Reading, settings: Settings) -> None:
        """`known`: path -> tokens [T, N, D] of the windows of an image, on the CPU."""
        super().__init__(nn.Identity(), images, reading, settings, None)
        self.known = known

    def of_image(self, position: int) -> tuple[Tensor, list[Box], tuple[int, int]]:
        """As in `Tokens`."""
        height, width = self.truth(position).shape
        shape = resized(width, height, self.settings.size)
        return self.known[str(self.images.paths[position])], boxes_of(*shape, self.settings.size), shape

    def windows(self, positions: Sequence[int], shown: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """As in `Tokens`."""
        for position in positions:
            labels = cut_truth(self.truth(position), self.settings.size)
            yield self.known[str(self.images.paths[position])], torch.from_numpy(labels)
