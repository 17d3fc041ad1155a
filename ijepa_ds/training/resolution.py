"""Smaller images at first: `data.early_crop_size` during the first `data.early_steps`.

The loader's crops are shrunk on the training device, so that order, windows and flips stay the same with every loader.
Parameters and checkpoints do not depend on the number of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds import config
from ijepa_ds.config import Config
from ijepa_ds.masks.sampler import Sampler, build_sampler


class Resolutions:
    """Image size and mask sampler of each step."""

    def __init__(self, cfg: Config) -> None:
        """Build the samplers of both stages."""
        self._cfg = cfg
        self._samplers = {
            step < cfg.data.early_steps: _sampler(config.at_step(cfg, step)) for step in {0, cfg.data.early_steps}
        }

    def sampler(self, step: int) -> Sampler:
        """The mask sampler of a step; its `grid` is that of the step's images."""
        return self._samplers[step < self._cfg.data.early_steps]

    def shrink(self, pixels: Tensor, step: int) -> Tensor:
        """Resize the loader's images, `[B, S, S, C]`, to the size of the step."""
        return shrunk(pixels, config.at_step(self._cfg, step).data.crop_size)


def _sampler(cfg: Config) -> Sampler:
    return build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)


def shrunk(pixels: Tensor, size: int) -> Tensor:
    """Resize `[B, S, S, C]`, uint8 or float32 in 0 .. 1, to `[B, size, size, C]`, bilinear with antialiasing."""
    if pixels.shape[1] == size:
        return pixels
    planes = pixels.permute(0, 3, 1, 2).float()
    planes = F.interpolate(planes, (size, size), mode="bilinear", antialias=True, align_corners=False)
    if pixels.dtype == torch.uint8:
        planes = planes.round_().clamp_(0, 255).to(pixels.dtype)
    return planes.permute(0, 2, 3, 1).contiguous()
