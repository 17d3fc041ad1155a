"""The encoder that is scored: from any weights, untrained with the same size, or the raw pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ijepa_ds.checkpoint.folder import checksum
from ijepa_ds.config.sizes import SIZES
from ijepa_ds.evals.features import set_image_size
from ijepa_ds.options.evals import BASELINES
from ijepa_ds.weights import Facts, read_encoder

_HASHED = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".json")


class Pixels(nn.Module):
    """Baseline without an encoder: an image's normalised pixels are its only token."""

    def __init__(self, patch_size: int) -> None:
        """`patch_size` of the encoder beside it: segment and depth take the pixels of a patch as its token."""
        super().__init__()
        self.patch_size = patch_size

    def forward(self, images: Tensor) -> Tensor:
        """`images: [B, 3, S, S]` -> [B, 1, 3 * S * S]."""
        return images.flatten(1)[:, None]


@dataclass(frozen=True)
class Subject:
    """An encoder with its metadata.

    Attributes:
        name: target, context, untrained, unlabelled or pixels.
        encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`.
        facts: metadata of the weights.
        notes: remarks for the reader of its scores.
    """

    name: str
    encoder: nn.Module
    facts: Facts
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Model name as in tables of published numbers, such as huge/14."""
        rows = [name for name, size in SIZES.items() if size == replace(self.facts.size, channels=3)]
        size = rows[0] if rows else f"{self.facts.size.width} x {self.facts.size.depth}"
        return f"{size}/{self.facts.patch_size}"

    def as_json(self) -> dict[str, Any]:
        """The entry `checkpoint` of `result.json`."""
        hashed = None if self.name in BASELINES else weights_hash(Path(self.facts.source))
        return {
            "checkpoint": self.facts.source,
            "which": self.name,
            "step": self.facts.step,
            "kind": self.facts.kind,
            "model": self.model,
            "sha256": hashed,
        }


def open_subject(path: str, which: str | None, heads: int | None, size: int | None) -> Subject:
    """Read an encoder and set it up for images of `size` pixels (None: as trained).

    Args:
        path: a run, a checkpoint folder, or weights of any format.
        which: target, context, untrained, pixels; None: the target, or the only encoder.
        heads: attention heads, where the file does not say.
        size: pixels.

    Raises:
        ValueError: the weights cannot be read, lack this encoder, or do not fit the size.
        CheckpointError: a run without a usable checkpoint.
    """
    encoder, facts = read_encoder(path, "untrained" if which == "pixels" else which, heads)
    notes = list(facts.notes)
    if which == "pixels":
        return Subject("pixels", Pixels(facts.patch_size), facts)
    if which is None and facts.which == "context":
        notes.append("the context encoder was scored: these weights have no target encoder, which the paper evaluates")
    trained = facts.position_grid * facts.patch_size
    if size is not None:
        set_image_size(encoder, size)
        if size != trained:
            notes.append(f"images of {size} pixels, trained on {trained}: positions are interpolated")
    return Subject(facts.which, encoder, facts, tuple(notes))


def weights_hash(path: Path) -> str | None:
    """SHA-256 of a checkpoint's manifest (which has the checksums of its files), of a file, or of a folder's files."""
    if (path / "manifest.json").is_file():
        return checksum(path / "manifest.json")
    if path.is_file():
        return checksum(path)
    digest, found = hashlib.sha256(), False
    for file in sorted(path.glob("*")) if path.is_dir() else ():
        if file.suffix in _HASHED and file.is_file():
            digest.update(f"{file.name} {checksum(file)}\n".encode())
            found = True
    return digest.hexdigest() if found else None


def default_device(local_rank: int) -> str:
    """This rank's GPU, or the CPU without one."""
    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
