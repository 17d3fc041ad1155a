"""Encoders, features, images and a run for evaluations, small and with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ijepa_ds import config
from ijepa_ds.checkpoint.folder import checksum, folder_name
from ijepa_ds.config.sizes import size_of
from ijepa_ds.model.vit import Encoder, initialise

HALF = (0.5, 0.5, 0.5)


class Colours(nn.Module):
    """An encoder whose tokens are the mean colours of 4 x 4 patches; notes the modes and types it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.seen: list[tuple[bool, bool, torch.dtype]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.training, torch.is_grad_enabled(), images.dtype))
        return self.dropout(nn.functional.avg_pool2d(images, 4)).flatten(2).transpose(1, 2)


def clusters(num: int, classes: int = 5, width: int = 16, spread: float = 1.4, seed: int = 0):
    """Overlapping Gaussian classes, so that accuracies lie well between chance and 100."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    labels = rng.integers(0, classes, num)
    features = centres[labels] + spread * rng.standard_normal((num, width)) + 0.3
    return torch.from_numpy(features), torch.from_numpy(labels)


def write_images(root: Path, counts: dict[str, int], size: int = 16) -> None:
    """Class folders of noisy single-coloured images; the colour is a function of the class name."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        colour = np.random.default_rng(sum(name.encode())).integers(40, 216, 3)
        for i in range(count):
            noise = np.random.default_rng(i).integers(-20, 21, (size, size, 3))
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(root / name / f"{i}.png")


def write_blind_run(folder: Path) -> Path:
    """A run with a checkpoint whose EMA encoder is blind: it gives all images the same vector."""
    text = f"""
run: {{dir: {folder / "run"}, seed: 3}}
data: {{source: {folder}, crop_size: 16}}
model: {{name: tiny, width: 32, depth: 2, heads: 2, patch_size: 4, predictor: {{depth: 1, width: 16, heads: 2}}}}
masks: {{min_keep: 0}}
optimization: {{batch_size: 8, steps: 20, warmup_steps: 2}}
"""
    (folder / "run.yaml").write_text(text)
    cfg = config.load(folder / "run.yaml", [])
    checkpoint = folder / "run" / "checkpoints" / folder_name(20)
    checkpoint.mkdir(parents=True)
    config.save_resolved(cfg, folder / "run" / "config.yaml")
    encoder = Encoder(size_of(cfg.model), 4, 4)
    initialise(encoder, seed=77, prefix="encoder.")
    torch.nn.init.zeros_(encoder.patch_embed.proj.weight)
    values = {f"ema/encoder.{name}": value.detach().flatten() for name, value in encoder.named_parameters()}
    save_file(values, checkpoint / "shard.safetensors", metadata={"starts": json.dumps(dict.fromkeys(values, 0))})
    size = (checkpoint / "shard.safetensors").stat().st_size
    files = [{"file": "shard.safetensors", "bytes": size, "sha256": checksum(checkpoint / "shard.safetensors")}]
    (checkpoint / "manifest.json").write_text(json.dumps({"format": 1, "step": 20, "adam_step": 20, "files": files}))
    return folder / "run"
