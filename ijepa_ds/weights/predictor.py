"""Builds predictors and complete I-JEPA models from weights, and masks for them."""

from __future__ import annotations

import logging
from dataclasses import replace

from ijepa_ds.config import MasksConfig, TargetsConfig
from ijepa_ds.errors import UserError
from ijepa_ds.masks.sampler import Masks, build_sampler, check
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.model.vit import Predictor
from ijepa_ds.weights.encoder import build_encoder, fill_network
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.source import Source

logger = logging.getLogger(__name__)


def build_predictor(source: Source, grid: int | None = None, trained: bool = True) -> Predictor:
    """Build the predictor of a source: float32, on the CPU, frozen.

    Args:
        source: opened weights.
        grid: patches along a side of the images; None: as in training.
        trained: False: the initial values of the run's seed.

    Raises:
        WeightsError: the source has no predictor.
    """
    shape = source.predictor
    if shape is None or (trained and "predictor" not in source.parts):
        raise WeightsError(
            f"{source.path}: has no predictor (it has {', '.join(source.parts) or 'no weights'}); give a run directory, a "
            "published checkpoint, or an export of all parts"
        )
    if shape.heads is None:
        logger.info("%s: predictor heads: %d, the encoder's, as in the published runs", source.path, source.size.heads)
    heads = shape.heads or source.size.heads
    grid = grid or source.grid
    positions = source.position_grid
    predictor = Predictor(
        source.size.width, shape.width, shape.depth, heads, grid, position_grid=positions, outputs=shape.outputs
    )
    return fill_network(predictor, source, "predictor", source.parts["predictor"] if trained else None)


def build_ijepa(source: Source, grid: int | None = None) -> IJEPA:
    """Build context encoder, predictor and target encoder for images of `grid` x `grid` patches.

    Targets are those of the run's configuration (`targets`), or the published ones where no configuration is known.

    Raises:
        WeightsError: one of them is missing, or the predictor is not that of these targets.
    """
    targets = source.config.targets if source.config else TargetsConfig()
    if source.predictor and (source.predictor.outputs or source.size.width) != targets.width(source.size.width):
        raise WeightsError(
            f"{source.path}: its predictor has {source.predictor.outputs} outputs for an encoder of width {source.size.width}: "
            "it predicts several layers (targets.layers), and the file does not say which; give the run directory"
        )
    predictor = build_predictor(source, grid)
    context, target = (build_encoder(source, source.choose(part)) for part in ("context", "target"))
    for encoder in (context, target):
        encoder.set_grid(grid or source.grid)
    return IJEPA(context, predictor, target, targets=targets).eval()


def masks_for(source: Source, grid: int, count: int, seed: int) -> Masks:
    """Sample masks for `count` images with the run's settings (the published ones for weights without a run).

    On another grid than the run's, `masks.context_tokens` is derived from the scales again.

    Raises:
        ValueError: the mask settings do not fit this grid.
    """
    cfg = source.config.masks if source.config else MasksConfig()
    if grid != source.grid:
        cfg = replace(cfg, context_tokens=None)
    problems = check(cfg, grid)
    if problems:
        raise UserError(f"masks cannot be drawn on {grid} x {grid} patches: " + "; ".join(problems))
    if cfg.sampler == "published":
        cfg = replace(cfg, truncation_group=max(count, cfg.truncation_group))
    return build_sampler(cfg, grid, seed, count).sample(0, 0, count, "cpu")
