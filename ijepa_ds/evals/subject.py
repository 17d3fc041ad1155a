"""Who is scored: an encoder from any weights, an untrained one of its shape, or the raw pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ijepa_ds.checkpoint.folder import checksum
from ijepa_ds.config.sizes import SIZES
from ijepa_ds.evals.features import set_image_size
from ijepa_ds.weights import Facts, read_encoder

BASELINES = ("untrained", "pixels")
_HASHED = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".json")


class Pixels(nn.Module):
    """No encoder at all: an image's normalised pixels are its one token."""

    def forward(self, images: Tensor) -> Tensor:
        """`images: [B, 3, S, S]` -> [B, 1, 3 * S * S]."""
        return images.flatten(1)[:, None]


@dataclass(frozen=True)
class Subject:
    """An encoder and what is known about it.

    Attributes:
        name: target, context, untrained, unlabelled or pixels.
        encoder: `encoder(images [B, 3, S, S]) -> [B, N, D]`.
        facts: where it comes from.
        notes: what a reader of its scores should know.
    """

    name: str
    encoder: nn.Module
    facts: Facts
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """Such as ViT-H/14 at 224 pixels, as tables of published numbers call it."""
        rows = [name for name, size in SIZES.items() if size == self.facts.size]
        size = rows[0] if rows else f"{self.facts.size.width} x {self.facts.size.depth}"
        return f"{size}/{self.facts.patch_size}"

    def told(self) -> dict[str, Any]:
        """The facts as `result.json` has them."""
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
    """Read an encoder, ready for images of `size` pixels (None: as trained).

    Args:
        path: of a run, a checkpoint folder, or weights of any kind.
        which: target, context, untrained, pixels, or None: the target, or the one encoder there is.
        heads: of attention, where a file does not say.
        size: pixels.

    Raises:
        ValueError: nothing usable is there, an encoder that is not in it, or a size that does not fit.
        CheckpointError: a run's checkpoints are broken.
    """
    encoder, facts = read_encoder(path, "untrained" if which == "pixels" else which, heads)
    notes = list(facts.notes)
    if which == "pixels":
        return Subject("pixels", Pixels(), facts)
    if which is None and facts.which == "context":
        notes.append("these weights have no target encoder, which the paper evaluates: the context encoder was scored")
    trained = facts.position_grid * facts.patch_size
    if size is not None:
        set_image_size(encoder, size)
        if size != trained:
            notes.append(f"images of {size} pixels, trained on {trained}: positions are interpolated")
    return Subject(facts.which, encoder, facts, tuple(notes))


def weights_hash(path: Path) -> str | None:
    """SHA-256 of what holds the weights: a checkpoint's manifest (it has its files' checksums), a file, or a folder's files."""
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
    """The accelerator of this rank where there is one, else the CPU."""
    return f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
