"""Recorded runs of the published code: figures and tensors."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "recorded"
Oracle = tuple[dict, dict[str, Tensor]]


def read_oracle(figures: Path, tensors: Path) -> Oracle:
    """Figures and tensors of a run, from its two files."""
    return json.loads(figures.read_text()), load_file(tensors)


def assert_close(ours: Tensor, theirs: Tensor, relative: float, what: str) -> None:
    """Largest difference against the largest value."""
    difference = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12)
    assert difference <= relative, f"{what}: {difference:.2e} relative"
