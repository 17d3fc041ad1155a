"""Conditions of a decoder: an average-pooled representation with its position, or the tokens of a block's patches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model import cpu
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.weights import Source, WeightsError, build_ijepa, build_predictor, masks_for

PLACE = 4  # values of the position: top, left, height, width, as shares of the image


@dataclass(frozen=True)
class Conditions:
    """Conditions of B images.

    Attributes:
        vectors: float32 [B, D + 4]; for the variant `patches` [B, N * (D + 1)]: every patch of the image with its token and
            1, or zeros outside the block.
        masks: for `block` and `patches`: the predictor sees the first context and predicts the first target block.
        boxes: float32 [B, 4]: top, left, height, width of the represented region, as shares of the image.
    """

    vectors: Tensor
    masks: Masks | None
    boxes: Tensor


class Conditioner:
    """Computes conditions with the frozen networks of a run."""

    def __init__(self, source: Source, variant: str, device: torch.device, predictor: str = "trained") -> None:
        """Build the networks.

        Args:
            source: opened weights with all three networks.
            variant: `image`: the target encoder's output, pooled over the image (layer-normed patch by patch, as in training);
                `block`: the predictor's output for one target block, pooled over the block;
                `patches`: that output patch by patch, predicted from all patches outside the block.
            device: of the networks.
            predictor: trained, or untrained for its initial values.

        Raises:
            WeightsError: for `block` and `patches`, the run's predictor does not predict the encoder's layer-normed output.
        """
        if variant != "image" and source.config and not source.config.targets.is_published:
            raise WeightsError(
                f"{source.path}: --condition {variant} needs a predictor of the encoder's output, but this run has "
                f"targets.layers {source.config.targets.layers} and targets.norm {source.config.targets.norm}; "
                "use --condition image"
            )
        self.source, self.variant, self.device = source, variant, device
        self.model: IJEPA = build_ijepa(source)
        if predictor == "untrained":
            self.model.predictor = build_predictor(source, trained=False)
        self.model = self.model.to(device)
        if device.type == "cpu":
            cpu.tune(self.model, torch.float32)

    @property
    def width(self) -> int:
        """Number of values in a condition."""
        size = self.source.size.width
        return self.grid**2 * (size + 1) if self.grid else size + PLACE

    @property
    def grid(self) -> int:
        """Patches along a side of the conditions that are tokens; 0 for pooled ones."""
        return self.source.grid if self.variant == "patches" else 0

    @torch.no_grad()
    def features(self, images: Tensor, block: Tensor | None = None) -> Tensor:
        """Pooled target representations `[B, D]` of images `[B, 3, S, S]`, normalised; or of a block's patches `[B, Kt]`."""
        whole = self.model.target_encoder(images).float()
        whole = F.layer_norm(whole, whole.shape[-1:])
        if block is not None:
            whole = whole.gather(1, block[:, :, None].expand(-1, -1, whole.shape[-1]))
        return whole.mean(dim=1)

    @torch.no_grad()
    def compute(self, images: Tensor, seed: int, oracle: bool = False, first: int = 0, of: int | None = None) -> Conditions:
        """Compute the conditions of images.

        Args:
            images: `[B, 3, S, S]`, normalised.
            seed: of the masks, for the variants `block` and `patches`.
            oracle: for these two: use the target encoder's representation instead of the predictor's.
            first: position of these images in the batch, which ranks share.
            of: size of that batch; None: B.
        """
        count = len(images)
        if self.variant == "image":
            boxes = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(count, -1).to(self.device)
            return Conditions(torch.cat([self.features(images), boxes], dim=1), None, boxes)
        drawn = masks_for(self.source, self.source.grid, of or count, seed)
        mine = slice(first, first + count)
        context, block = drawn.context[mine, :1], drawn.targets[mine, :1]
        if self.variant == "patches":
            context = outside(block[:, 0], self.source.grid)[:, None]
        return self.predict(images, Masks(context.to(self.device), block.to(self.device)), oracle)

    @torch.no_grad()
    def predict(self, images: Tensor, masks: Masks, oracle: bool = False) -> Conditions:
        """The conditions of one block an image.

        Args:
            images: `[B, 3, S, S]`, normalised.
            masks: what the predictor sees, context `[B, 1, Kc]`, and the block, targets `[B, 1, Kt]`.
            oracle: use the target encoder's representation instead of the predictor's.
        """
        if oracle:
            tokens = self.model.targets(images, masks)[:, 0]
        else:
            seen = self.model.encoder(images, masks.context)
            tokens = self.model.predictor(seen, masks.context, masks.targets)[:, 0, 0].float()
        block = masks.targets[:, 0]
        boxes = _boxes(block, self.source.grid)
        if not self.grid:
            return Conditions(torch.cat([tokens.mean(dim=1), boxes], dim=1), masks, boxes)
        marked = F.pad(tokens, (0, 1), value=1.0)
        whole = marked.new_zeros(len(marked), self.grid**2, marked.shape[-1])
        whole.scatter_(1, block[:, :, None].expand_as(marked), marked)
        return Conditions(whole.flatten(1), masks, boxes)


def outside(block: Tensor, grid: int) -> Tensor:
    """The patches that are not in blocks [B, Kt], in order: [B, N - Kt]."""
    free = torch.ones(len(block), grid * grid, dtype=torch.bool).scatter_(1, block, False)
    return free.nonzero()[:, 1].view(len(block), -1)


def _boxes(block: Tensor, grid: int) -> Tensor:
    """Patch numbers of rectangles [B, Kt] as (top, left, height, width) in shares of the image [B, 4]."""
    first, last = block.amin(dim=1), block.amax(dim=1)
    top, left = first // grid, first % grid
    return torch.stack([top, left, last // grid - top + 1, last % grid - left + 1], dim=1).float() / grid


def context_only(pixels: Tensor, masks: Masks, grid: int) -> Tensor:
    """Images with only the patches of the first context, the others grey: uint8 [B, S, S, 3]."""
    seen = torch.zeros(len(pixels), grid * grid, 1)
    seen.scatter_(1, masks.context[:, 0, :, None].cpu(), 1.0)
    side = pixels.shape[1]
    shown = F.interpolate(seen.reshape(-1, 1, grid, grid), size=(side, side), mode="nearest")[:, 0, :, :, None]
    return torch.where(shown > 0, pixels, torch.full_like(pixels, 128))
