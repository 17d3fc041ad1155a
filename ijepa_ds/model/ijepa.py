"""I-JEPA: predict the representations of target blocks of an image from a context block (Assran et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import size_of
from ijepa_ds.masks.sampler import Masks, take
from ijepa_ds.model.vit import Encoder, Predictor


class Output(NamedTuple):
    """The result of one forward pass."""

    loss: Tensor  # scalar, float32
    prediction: Tensor  # [B, C, M, Kt, D], detached
    target: Tensor  # [B, M, Kt, D], float32, layer-normed, no gradient


class IJEPA(nn.Module):
    """Context encoder, predictor and target encoder; only the EMA updates the target encoder."""

    def __init__(self, encoder: Encoder, predictor: Predictor, target_encoder: Encoder, target_bfloat16: bool = False) -> None:
        """Combine three networks; `target_bfloat16` runs the target encoder's matrix products in bfloat16."""
        super().__init__()
        self.target_bfloat16 = target_bfloat16
        self.encoder, self.predictor, self.target_encoder = encoder, predictor, target_encoder
        self.target_encoder.requires_grad_(False)

    def forward(self, images: Tensor, masks: Masks, mark: Callable[[str], None] | None = None) -> Output:
        """Return the loss of one micro-batch.

        Args:
            images: `[B, 3, H, W]`, normalised.
            masks: Contexts `[B, C, Kc]` and targets `[B, M, Kt]`.
            mark: Called with the name of each finished part, for timing.
        """
        target = self.targets(images, masks)
        if mark:
            mark("target")
        encoded = self.encoder(images, masks.context)
        if mark:
            mark("context")
        prediction = self.predictor(encoded, masks.context, masks.targets)
        loss = F.smooth_l1_loss(prediction.float(), target[:, None].expand(prediction.shape))
        if mark:
            mark("predictor")
        return Output(loss, prediction.detach(), target)

    def set_grid(self, grid: int) -> None:
        """Set the number of patches along a side of later images (`Encoder.set_grid`)."""
        for part in (self.encoder, self.predictor, self.target_encoder):
            part.set_grid(grid)

    @torch.no_grad()
    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """Return the prediction targets, float32 `[B, M, Kt, D]`.

        The target encoder sees the whole image. Its output is layer-normed over D without affine parameters (published
        runs).
        """
        device = images.device.type
        with torch.autocast(device, torch.bfloat16, cache_enabled=False) if self.target_bfloat16 else nullcontext():
            whole = self.target_encoder(images)  # [B, N, D]
        whole = F.layer_norm(whole.float(), whole.shape[-1:])
        b, m, k = masks.targets.shape
        return take(whole, masks.targets.flatten(1)).reshape(b, m, k, -1)


def build(cfg: Config) -> IJEPA:
    """Build the networks of a configuration; `vit.initialise` fills their parameters."""
    model, size = cfg.model, size_of(cfg.model)
    grid = cfg.data.crop_size // model.patch_size
    checkpointing = model.recompute if model.activation_checkpointing else "none"

    def encoder() -> Encoder:
        return Encoder(size, model.patch_size, grid, checkpointing, model.position_grid)

    predictor = Predictor(
        size.width,
        model.predictor.width,
        model.predictor.depth,
        model.predictor.heads or size.heads,
        grid,
        checkpointing,
        model.position_grid,
    )
    narrow = model.target_precision == "bfloat16" and model.precision != "bfloat16"
    return IJEPA(encoder(), predictor, encoder(), narrow)
