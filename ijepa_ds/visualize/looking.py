"""Shared by the commands below `visualize`: the networks of a model, and the images to draw."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.arguments import below
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import load_eval_images, normalize
from ijepa_ds.data.walk import is_image
from ijepa_ds.model.vit import Encoder
from ijepa_ds.weights import Source
from ijepa_ds.weights import open_source as open_weights
from ijepa_ds.weights.encoder import build_encoder

_PLAIN = ScanOptions()


@dataclass(frozen=True)
class Pictures:
    """Images read as for evaluation.

    Attributes:
        names: of n files.
        pixels: what is shown, uint8 [n, S, S, 3].
        inputs: what the encoder gets, `pixels` or float32 [n, S, S, C] in 0 .. 1.
    """

    names: tuple[str, ...]
    pixels: np.ndarray
    inputs: np.ndarray

    def batches(self, source: Source, size: int, device: torch.device) -> Iterator[Tensor]:
        """Normalised [B, C, S, S], at most `size` images each."""
        for start in range(0, len(self.inputs), size):
            batch = torch.from_numpy(self.inputs[start : start + size]).to(device)
            yield normalize(batch, source.mean, source.std, torch.float32)


def open_checked(args: argparse.Namespace) -> tuple[Source, int]:
    """Open the weights; return them with the image size.

    Raises:
        ValueError: options out of range, all at once; or unreadable weights.
    """
    wrong = below(args, num=1, batch_size=1)
    source = open_weights(args.checkpoint, args.heads, args.step)
    size = args.image_size or source.grid * source.patch_size
    if size < 2 * source.patch_size or size % source.patch_size:
        wrong.append(
            f"--image-size {size}: expected a multiple of the patch size, {source.patch_size}, and at least two patches a side"
        )
    if wrong:
        raise ValueError("\n".join(wrong))
    return source, size


def read_pictures(images: Sequence[Path], num: int, size: int, options: ScanOptions = _PLAIN) -> Pictures:
    """Read image files, or evenly spaced images of a source (a folder, a list, tars, an index).

    Raises:
        ValueError: a source without images, or a file that is missing or unreadable.
    """
    taken: list[Any] = []
    for item in images:
        if item.is_file() and is_image(os.fsencode(item.name), bool(options.values.layout)):
            taken.append(str(item))
            continue
        try:
            index = open_source(str(item), options)
        except ValueError as error:
            raise ValueError(str(error).replace("data.source", "--images", 1)) from error
        found = ImageFiles(index, index.readable())
        chosen = np.unique(np.linspace(0, len(found) - 1, min(num, len(found))).round().astype(int))
        taken += [found[int(i)] for i in chosen]
    names = tuple(Path(str(item)).name for item in taken)
    inputs = load_eval_images(taken, size, threads=2, max_pixels=options.max_pixels, values=options.values)
    return Pictures(names, options.values.pictured(inputs), inputs)


def encoder_of(source: Source, which: str | None, size: int, device: torch.device) -> tuple[Encoder, str]:
    """Build an encoder for images of `size` pixels; return it with the name of its part."""
    part = "untrained" if which == "untrained" else source.choose(which)
    encoder = build_encoder(source, part)
    encoder.set_grid(size // source.patch_size)
    return encoder.to(device), part


@torch.no_grad()
def tokens_of(encoder: nn.Module, batches: Iterator[Tensor]) -> Tensor:
    """Output patch tokens of all images: float32 [n, N, D] on the CPU.

    Raises:
        ValueError: tokens are not finite.
    """
    tokens = torch.cat([encoder(batch).float().cpu() for batch in batches])
    if not bool(torch.isfinite(tokens).all()):
        raise ValueError("the encoder's features are NaN or infinite: the weights have diverged; take an earlier --step")
    return tokens
