"""I-JEPA: predict the representations of target blocks of an image from a context block (Assran et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.config import Config, ObjectiveConfig, TargetsConfig
from ijepa_ds.config.sizes import size_of
from ijepa_ds.masks.sampler import Masks, take
from ijepa_ds.model.objective import context_loss, normalised, spread_loss
from ijepa_ds.model.vit import Encoder, Predictor


class Output(NamedTuple):
    """The result of one forward pass."""

    loss: Tensor  # scalar, float32
    prediction: Tensor  # [B, C, M, Kt, T], detached
    target: Tensor  # [B, M, Kt, T], float32, normalised, no gradient


class IJEPA(nn.Module):
    """Context encoder, predictor and target encoder; only the EMA updates the target encoder."""

    def __init__(
        self,
        encoder: Encoder,
        predictor: Predictor,
        target_encoder: Encoder,
        target_bfloat16: bool = False,
        targets: TargetsConfig | None = None,
        objective: ObjectiveConfig | None = None,
    ) -> None:
        """Combine three networks.

        Args:
            encoder: Context encoder.
            predictor: Its output has `targets.width` values.
            target_encoder: Gets no gradient.
            target_bfloat16: Run the target encoder's matrix products in bfloat16.
            targets: What is predicted; None: as in the published runs.
            objective: Further terms of the loss; None: none.
        """
        super().__init__()
        self.target_bfloat16 = target_bfloat16
        self.target_options, self.objective = targets or TargetsConfig(), objective or ObjectiveConfig()
        self.encoder, self.predictor, self.target_encoder = encoder, predictor, target_encoder
        self.target_encoder.requires_grad_(False)

    def forward(
        self, images: Tensor, masks: Masks, mark: Callable[[str], None] | None = None, context_share: float = 1.0
    ) -> Output:
        """Return the loss of one micro-batch.

        Args:
            images: `[B, 3, H, W]`, normalised.
            masks: Contexts `[B, C, Kc]` and targets `[B, M, Kt]`.
            mark: Called with the name of each finished part, for timing.
            context_share: Share of `objective.context_weight` that counts in this step.
        """
        whole = self.target_map(images)
        target = blocks_of(whole, masks.targets)
        if mark:
            mark("target")
        encoded = self.encoder(images, masks.context)
        if mark:
            mark("context")
        if weight := self.objective.context_weight:
            both = self.predictor(encoded, masks.context, masks.targets, with_context=True)
            of_context, prediction = both.split((masks.context.shape[-1], masks.targets.shape[-1]), dim=3)
        else:
            prediction = self.predictor(encoded, masks.context, masks.targets)
        loss = F.smooth_l1_loss(prediction.float(), target[:, None].expand(prediction.shape))
        if weight:
            loss = loss + weight * context_share * context_loss(of_context, whole, masks, self.encoder.grid)
        if self.objective.spreads:
            pooled = encoded.mean(dim=2).flatten(0, 1)  # [B * C, D]
            projected = self.predictor.projector(pooled.to(self.predictor.projector[0].weight.dtype))
            loss = loss + spread_loss(projected, self.objective)
        if mark:
            mark("predictor")
        return Output(loss, prediction.detach(), target)

    def set_grid(self, grid: int) -> None:
        """Set the number of patches along a side of later images (`Encoder.set_grid`)."""
        for part in (self.encoder, self.predictor, self.target_encoder):
            part.set_grid(grid)

    @torch.no_grad()
    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """Return the prediction targets, float32 `[B, M, Kt, T]`."""
        return blocks_of(self.target_map(images), masks.targets)

    @torch.no_grad()
    def target_map(self, images: Tensor) -> Tensor:
        """Return the targets of all patches, float32 `[B, N, T]`.

        The target encoder sees the whole image. Its output is layer-normed over D without affine parameters (published
        runs), unless the section `targets` of the configuration says otherwise.
        """
        device, layers = images.device.type, self.target_options.layers
        with torch.autocast(device, torch.bfloat16, cache_enabled=False) if self.target_bfloat16 else nullcontext():
            whole = self.target_encoder(images, layers=layers) if layers else self.target_encoder(images)
        return normalised(whole, self.target_options)


def blocks_of(whole: Tensor, targets: Tensor) -> Tensor:
    """Return the patches `targets: [B, M, Kt]` of `whole: [B, N, T]`, as `[B, M, Kt, T]`."""
    b, m, k = targets.shape
    return take(whole, targets.flatten(1)).reshape(b, m, k, -1)


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
        cfg.targets.width(size.width),
        cfg.objective.projection if cfg.objective.spreads else 0,
    )
    narrow = model.target_precision == "bfloat16" and model.precision != "bfloat16"
    return IJEPA(encoder(), predictor, encoder(), narrow, cfg.targets, cfg.objective)
