"""What the verbs that look at a model share: its networks and the pictures they look at."""

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

from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import load_eval_images, normalize
from ijepa_ds.data.walk import is_image
from ijepa_ds.model.vit import Encoder
from ijepa_ds.weights import Source
from ijepa_ds.weights import open_source as open_weights
from ijepa_ds.weights.encoder import fill


@dataclass(frozen=True)
class Pictures:
    """Images as evaluation reads them.

    Attributes:
        names: of n files.
        pixels: uint8 [n, S, S, 3].
    """

    names: tuple[str, ...]
    pixels: np.ndarray

    def batches(self, source: Source, size: int, device: torch.device) -> Iterator[Tensor]:
        """Normalised [B, 3, S, S], at most `size` images each."""
        for start in range(0, len(self.pixels), size):
            batch = torch.from_numpy(self.pixels[start : start + size]).to(device)
            yield normalize(batch, source.mean, source.std, torch.float32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is looked at."""
    parser.add_argument("--checkpoint", required=True, type=Path, help="run, checkpoint folder, or weights of any kind")
    parser.add_argument("--images", required=True, type=Path, nargs="+", help="a folder, list, tars or index; or image files")
    parser.add_argument("--num", type=int, default=8, help="images taken from a folder, evenly spaced (8)")
    parser.add_argument("--image-size", type=int, help="pixels, a multiple of the patch size; default: as in training")
    parser.add_argument("--step", type=int, help="of a run, the checkpoint to take; default: the newest")
    parser.add_argument("--heads", type=int, help="attention heads, where a file of weights does not say")
    parser.add_argument("--seed", type=int, default=0, help="of masks and samples (0)")
    parser.add_argument("--batch-size", type=int, default=16, help="images through the networks at once (16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto: cuda where there is one)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the PNGs and index.html")


def device_of(name: str) -> torch.device:
    """The device asked for."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)


def open_checked(args: argparse.Namespace) -> tuple[Source, int]:
    """The weights, and the size images shall have.

    Raises:
        ValueError: numbers that make no sense, all at once; or weights that are none.
    """
    wrong = [f"--{name.replace('_', '-')} {getattr(args, name)}: expected at least 1" for name in ("num", "batch_size")]
    wrong = [line for line, name in zip(wrong, ("num", "batch_size"), strict=True) if getattr(args, name) < 1]
    source = open_weights(args.checkpoint, args.heads, args.step)
    size = args.image_size or source.grid * source.patch_size
    if size < 2 * source.patch_size or size % source.patch_size:
        wrong.append(
            f"--image-size {size}: expected a multiple of the patch size, {source.patch_size}, and at least two patches a side"
        )
    if wrong:
        raise ValueError("\n".join(wrong))
    return source, size


def read_pictures(images: Sequence[Path], num: int, size: int) -> Pictures:
    """Images of a source (a folder, a list, tars, an index), evenly spaced, or the files named.

    Raises:
        ValueError: a source without images, a file that is not there or cannot be read.
    """
    taken: list[Any] = []
    for item in images:
        if item.is_file() and is_image(os.fsencode(item.name)):
            taken.append(str(item))
            continue
        try:
            index = open_source(str(item))
        except ValueError as error:
            raise ValueError(str(error).replace("data.source", "--images", 1)) from error
        found = ImageFiles(index, index.readable())
        chosen = np.unique(np.linspace(0, len(found) - 1, min(num, len(found))).round().astype(int))
        taken += [found[int(i)] for i in chosen]
    names = tuple(Path(str(item)).name for item in taken)
    return Pictures(names, load_eval_images(taken, size, threads=2))


def encoder_of(source: Source, which: str | None, size: int, device: torch.device) -> tuple[Encoder, str]:
    """An encoder for images of `size` pixels, and which one it is."""
    part = "untrained" if which == "untrained" else source.choose(which)
    encoder = fill(source, part)
    encoder.set_grid(size // source.patch_size)
    return encoder.to(device), part


@torch.no_grad()
def tokens_of(encoder: nn.Module, batches: Iterator[Tensor]) -> Tensor:
    """Output patch tokens of all images: float32 [n, N, D] on the CPU.

    Raises:
        ValueError: they are not finite.
    """
    tokens = torch.cat([encoder(batch).float().cpu() for batch in batches])
    if not bool(torch.isfinite(tokens).all()):
        raise ValueError("the encoder's features are NaN or infinite: the weights have diverged; take an earlier --step")
    return tokens
