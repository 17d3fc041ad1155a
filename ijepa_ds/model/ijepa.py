"""I-JEPA: predict the representations of target blocks of an image from a context block (Assran et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ijepa_ds.config import Config, ObjectiveConfig, TargetsConfig
from ijepa_ds.config.sizes import size_of
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.objective import compare, context_loss, spread_terms, targets_of
from ijepa_ds.model.vit import Encoder, Predictor


class Output(NamedTuple):
    """The result of one forward pass."""

    loss: Tensor  # scalar, float32
    prediction: Tensor  # [B, C, M, Kt, T], detached
    target: Tensor  # [B, M, Kt, T], float32, normalised, no gradient
    terms: Tensor | None = None  # float32 [T], detached, before their weights, named by `ObjectiveConfig.terms`


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
        self.compare = compare  # `compiling.compile_blocks` replaces it

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
        outputs = self._target_outputs(images)
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
        loss, target = self.compare(outputs, prediction, masks.targets, self.target_options)
        terms = [loss]
        if weight:
            own = context_loss(of_context, outputs, masks, self.encoder.grid, self.target_options)
            loss = loss + weight * context_share * own
            terms.append(own)
        if self.objective.spreads:
            pooled = encoded.mean(dim=2).flatten(0, 1)  # [B * C, D]
            projected = self.predictor.projector(pooled.to(self.predictor.projector[0].weight.dtype))
            variance, covariance = spread_terms(projected)
            loss = loss + self.objective.variance_weight * variance + self.objective.covariance_weight * covariance
            terms += [variance, covariance]
        if mark:
            mark("predictor")
        return Output(loss, prediction.detach(), target, torch.stack(terms).detach() if self.objective.terms else None)

    def set_grid(self, grid: int) -> None:
        """Set the number of patches along a side of later images (`Encoder.set_grid`)."""
        for part in (self.encoder, self.predictor, self.target_encoder):
            part.set_grid(grid)

    @torch.no_grad()
    def targets(self, images: Tensor, masks: Masks) -> Tensor:
        """Return the prediction targets, float32 `[B, M, Kt, T]`.

        The target encoder sees the whole image. Its output is layer-normed over D without affine parameters (published
        runs), unless the section `targets` of the configuration says otherwise.
        """
        return targets_of(self._target_outputs(images), masks.targets, self.target_options)

    @torch.no_grad()
    def _target_outputs(self, images: Tensor) -> Tensor:
        """Outputs of the target encoder, `[B, N, D]`, or `[B, N, K, D]` with `targets.layers`."""
        device, layers = images.device.type, self.target_options.layers
        with torch.autocast(device, torch.bfloat16, cache_enabled=False) if self.target_bfloat16 else nullcontext():
            outputs: Tensor = self.target_encoder(images, layers=layers) if layers else self.target_encoder(images)
        return outputs


def build(cfg: Config) -> IJEPA:
    """Build the networks of a configuration; `vit.initialise` fills their parameters."""
    model, size = cfg.model, size_of(cfg.model)
    grid = cfg.data.crop_size // model.patch_size
    checkpointing = model.recompute if model.activation_checkpointing else "none"
    residual = {"bfloat16": torch.bfloat16, "float32": torch.float32}[model.residual]

    def encoder() -> Encoder:
        return Encoder(size, model.patch_size, grid, checkpointing, model.position_grid, residual)

    predictor = Predictor(
        size.width,
        model.predictor.width,
        model.predictor.depth,
        model.predictor.heads or size.heads,
        grid,
        checkpointing,
        model.position_grid,
        cfg.targets.width(size.width),
        residual,
        cfg.objective.projection if cfg.objective.spreads else 0,
    )
    narrow = model.target_precision == "bfloat16" and model.precision != "bfloat16"
    return IJEPA(encoder(), predictor, encoder(), narrow, cfg.targets, cfg.objective)
