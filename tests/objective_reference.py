"""Options of the objective, rewritten plainly: one image, one context, one target block and one layer at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ijepa_ds.config import Config
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.ijepa import IJEPA


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    """The mean over the values of each patch: `[K, T]` -> `[K]`."""
    far = (a - b).abs()
    return torch.where(far < 1, 0.5 * far * far, far - 0.5).mean(dim=1)


@torch.no_grad()
def targets_of(cfg: Config, model: IJEPA, image: Tensor) -> Tensor:
    """Targets of all patches of one image `[3, S, S]`: `[N, T]`."""
    encoder, options = model.target_encoder, cfg.targets
    x, outputs = encoder.embed(image[None]), []
    for block in encoder.blocks:
        x = block(x, *encoder.positions())
        outputs.append(x[0, encoder.size.registers :])
    chosen = [outputs[layer - 1] for layer in options.layers] if options.layers else [encoder.norm(outputs[-1])]
    made = []
    for values in chosen:
        if options.norm == "layer":
            centred = values - values.mean(dim=1, keepdim=True)
            values = centred / (centred.pow(2).mean(dim=1, keepdim=True) + 1e-5).sqrt()
        elif options.norm == "tanh":
            values = torch.tanh(values)
        made.append(values)
    return torch.cat(made, dim=1) if options.combine == "concat" else sum(made[1:], made[0]) / len(made)


def predictions_of(model: IJEPA, seen: Tensor, context: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions of a context `[Kc]`, whose encoding is `[Kc, D]`, and of a target block `[Kt]`."""
    p = model.predictor
    positions = p.predictor_pos_embed[0]
    sequence = torch.cat([p.predictor_embed(seen) + positions[context], p.mask_token[0] + positions[block]])[None]
    for layer in p.predictor_blocks:
        sequence = layer(sequence)
    out = p.predictor_proj(p.predictor_norm(sequence))[0]
    return out[: len(context)], out[len(context) :]


def distance(patch: int, block: list[int], grid: int) -> float:
    """From a patch to the nearest one of a block; 1 inside it."""
    to_all = [math.hypot(patch // grid - other // grid, patch % grid - other % grid) for other in block]
    return max(1.0, min(to_all))


def loss_of(cfg: Config, model: IJEPA, images: Tensor, masks: Masks, step: int) -> Tensor:
    """The loss of a whole global batch in a step, counted from 0."""
    terms, own = [], []
    grid = model.encoder.grid
    encoded = model.encoder(images, masks.context)
    for i in range(len(images)):
        truth = targets_of(cfg, model, images[i])
        for c, context in enumerate(masks.context[i]):
            for block in masks.targets[i]:
                of_context, of_block = predictions_of(model, encoded[i, c], context, block)
                terms.append(smooth_l1(of_block, truth[block]).mean())
                near = [1 / math.sqrt(distance(patch, block.tolist(), grid)) for patch in context.tolist()]
                own.append((smooth_l1(of_context, truth[context]) * torch.tensor(near)).mean())
    loss = torch.stack(terms).mean()
    if cfg.objective.context_weight:
        steps = int(cfg.objective.context_warmup * (cfg.optimization.steps or 0))
        share = min(1.0, (step + 1) / steps) if steps else 1.0
        loss = loss + cfg.objective.context_weight * share * torch.stack(own).mean()
    if cfg.objective.variance_weight or cfg.objective.covariance_weight:
        loss = loss + spread_of(cfg, model, encoded.mean(dim=2).flatten(0, 1))
    return loss


def spread_of(cfg: Config, model: IJEPA, pooled: Tensor) -> Tensor:
    """Variance and covariance terms of all pooled contexts of the global batch, `[n, D]`."""
    z = model.predictor.projector(pooled)
    covariance = torch.cov(z.T)
    hinge = torch.clamp(1 - torch.sqrt(z.var(dim=0) + 1e-4), min=0).mean()
    others = covariance[~torch.eye(len(covariance), dtype=torch.bool)]
    return cfg.objective.variance_weight * hinge + cfg.objective.covariance_weight * others.pow(2).sum() / z.shape[1]
