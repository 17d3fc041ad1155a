"""Checkpoints of one parameter, and what breaks their files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from ijepa_ds.checkpoint.folder import checksum, folder_name
from ijepa_ds.zero.layout import Piece


@dataclass
class Range:
    """A slice of a flattened parameter."""

    start: int
    numel: int


def write(run_dir: Path, step: int, values: torch.Tensor, cuts: list[int]) -> Path:
    """A checkpoint of one parameter `w`, cut over as many files as there are parts."""
    folder = run_dir / "checkpoints" / folder_name(step)
    folder.mkdir(parents=True)
    files, edges = [], [0, *cuts, values.numel()]
    for rank, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        path = folder / f"shard_{rank:05d}_of_{len(cuts) + 1:05d}.safetensors"
        save_file({"ema/w": values[low:high].clone()}, path, metadata={"starts": json.dumps({"ema/w": low})})
        files.append({"file": path.name, "bytes": path.stat().st_size, "sha256": checksum(path)})
    manifest = {"format": 1, "step": step, "adam_step": step, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def truncate(path: Path) -> None:
    """Cut a file short."""
    os.truncate(path, path.stat().st_size - 7)


def flip(path: Path) -> None:
    """One wrong bit near the end."""
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


class Layout:
    """Stands for `ZeroLayout`: four numbers on each rank."""

    stage, replicated = 2, False
    engine = SimpleNamespace(device=torch.device("cpu"))

    def __init__(self, rank: int = 0) -> None:
        self.pieces = [Piece("w", 4 * rank, 4, 0, 0)]
        self.weights = torch.arange(4.0) + 4 * rank

    def master(self, slot: int) -> torch.Tensor:
        return self.weights

    def moments(self, slot: int) -> dict[str, torch.Tensor]:
        return {"exp_avg": self.weights / 2, "exp_avg_sq": self.weights**2, "step": torch.tensor(5.0)}

    def scratch(self, numel: int, name: str) -> torch.Tensor:
        return torch.empty(numel)

    def view(self, buffer: torch.Tensor, piece: Piece) -> torch.Tensor:
        return buffer.narrow(0, piece.offset, piece.numel)
