"""The method: predict the representations of hidden blocks of an image from the rest (Assran et al., CVPR 2023)."""

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
    """What one pass gives."""

    loss: Tensor  # scalar, float32
    prediction: Tensor  # [B, C, M, Kt, D], detached
    target: Tensor  # [B, M, Kt, D], float32, layer-normed, no gradient


class IJEPA(nn.Module):
    """Context encoder, predictor and the target encoder (frozen: only the EMA moves it)."""

    def __init__(self, encoder: Encoder, predictor: Predictor, target_encoder: Encoder, target_bfloat16: bool = False) -> None:
        """`target_bfloat16`: the target encoder's matrix products in bfloat16, whatever its weights are."""
        super().__init__()
        self.target_bfloat16 = target_bfloat16
        self.encoder, self.predictor, self.target_encoder = encoder, predictor, target_encoder
        self.target_encoder.requires_grad_(False)

    def forward(self, images: Tensor, masks: Masks, mark: Callable[[str], None] | None = None) -> Output:
        """The loss of one micro-batch.

        Args:
            images: `[B, 3, H, W]`, normalised.
            masks: contexts `[B, C, Kc]` and targets `[B, M, Kt]`.
            mark: called with the name of each part when it is done, for time keeping.
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
        """Take images of so many patches along a side from now on (`Encoder.set_grid`)."""
        for part in (self.encoder, self.predictor, self.target_encoder):
            part.set_grid(grid)

    @torch.no_grad()
    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """What is to be predicted: `[B, M, Kt, D]`, float32.

        The target encoder sees the whole image; its output is layer-normed over D without affine parameters.
        """
        device = images.device.type
        with torch.autocast(device, torch.bfloat16, cache_enabled=False) if self.target_bfloat16 else nullcontext():
            whole = self.target_encoder(images)  # [B, N, D]
        whole = F.layer_norm(whole.float(), whole.shape[-1:])
        b, m, k = masks.targets.shape
        return take(whole, masks.targets.flatten(1)).reshape(b, m, k, -1)


def build(cfg: Config) -> IJEPA:
    """The networks of a configuration. Their values are not yet those of a start (see `vit.initialise`)."""
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
