"""Plain encoders out of runs: one process, no DeepSpeed, no other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ijepa_ds import config
from ijepa_ds.checkpoint_reader import CheckpointReader, newest
from ijepa_ds.vit import Encoder, initial_value, size_of

WHICH = {"target": "ema", "context": "master"}  # which encoder -> what the checkpoint calls its values


def load_encoder(path: str | Path, which: str = "target") -> tuple[Encoder, dict[str, Any]]:
    """An encoder of a run, float32, in evaluation mode, on the CPU.

    Args:
        path: a run directory (its newest good checkpoint) or one checkpoint folder `RUN/checkpoints/step_...`.
        which: `target` (the EMA; what the paper evaluates), `context`, or `untrained` (the run's start).

    Returns:
        the encoder, and {"config": Config, "step": int, "checkpoint": str, "which": str}.

    Raises:
        ValueError: `path` is no run, or `which` is unknown.
        CheckpointError: its checkpoints are broken.
    """
    if which not in (*WHICH, "untrained"):
        raise ValueError(f"which: expected target, context or untrained, got {which!r}")
    path = Path(path)
    if (path / "manifest.json").is_file():
        run_dir = path.parent.parent
        reader: CheckpointReader | None = CheckpointReader(path)
    else:
        run_dir = path
        reader = None if which == "untrained" else newest(path)
    if not (run_dir / "config.yaml").is_file():
        raise ValueError(f"{path}: neither a run directory (no config.yaml in it) nor a checkpoint folder of one")
    cfg = config.load(run_dir / "config.yaml", [])
    if reader is None and which != "untrained":
        raise ValueError(f"{path}: this run has no checkpoint yet")
    grid = cfg.data.crop_size // cfg.model.patch_size
    encoder = Encoder(size_of(cfg.model), cfg.model.patch_size, grid)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            full = "encoder." + name
            if which == "untrained" or reader is None:
                value = initial_value(full, parameter.shape, cfg.run.seed)
            else:
                value = reader.read(WHICH[which], full)
            parameter.copy_(value.view(parameter.shape))
    step = reader.manifest["step"] if reader and which != "untrained" else 0
    facts = {"config": cfg, "step": step, "checkpoint": str(reader.folder if reader else run_dir), "which": which}
    return encoder.eval().requires_grad_(False), facts

