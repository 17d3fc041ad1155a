"""A slow, obvious oracle: single-process PyTorch training of the same networks, one parameter at a time, float32."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.config import Config, at_step
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.data.augment import network_input
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.order import sample_indices
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.vision import read_crop
from ijepa_ds.masks.sampler import Masks, build_sampler
from ijepa_ds.model.ijepa import IJEPA, build
from ijepa_ds.model.vit import initialise
from ijepa_ds.training.resolution import shrunk


class ReferenceAdamW(torch.optim.AdamW):
    """AdamW over two groups: decayed matrices, undecayed biases and 1-D parameters."""

    def apply(self, lr: float, weight_decay: float) -> None:
        """One step with this step's hyper-parameters."""
        for group in self.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decay"] else 0.0
        self.step()


def make_optimizer(model: IJEPA, cfg: Config) -> ReferenceAdamW:
    """Groups as in the published code."""
    o = cfg.optimization
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for n, p in trainable if p.ndim > 1 and not n.endswith(".bias")]
    others = [p for n, p in trainable if p.ndim == 1 or n.endswith(".bias")]
    groups = [{"params": decayed, "decay": True}, {"params": others, "decay": False}]
    return ReferenceAdamW(groups, lr=0.0, betas=o.betas, eps=o.eps, weight_decay=0.0, foreach=False)


class EMA:
    """The published update, parameter by parameter."""

    def __init__(self, model: IJEPA) -> None:
        self.pairs = list(zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True))

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """target <- m * target + (1 - m) * encoder."""
        for source, target in self.pairs:
            target.mul_(momentum).add_(source, alpha=1.0 - momentum)


class Batches:
    """Whole global batches of a run, made one image at a time from its global sample number."""

    def __init__(self, cfg: Config) -> None:
        """Open the images of `cfg.data`, a folder of files."""
        self.cfg, self.images = cfg, open_source(cfg.data.source)

    def __call__(self, step: int) -> tuple[Tensor, Masks]:
        """Images `[B, 3, S, S]` float32 and masks of a step."""
        cfg, batch = at_step(self.cfg, step), self.cfg.optimization.batch_size
        images = torch.cat([self.image(step * batch + i, cfg.data.crop_size) for i in range(batch)])
        return images, build_sampler(cfg.masks, cfg.grid, cfg.run.seed, batch).sample(step, 0, batch, torch.device("cpu"))

    def image(self, number: int, size: int) -> Tensor:
        """The network's input for a global sample number, `[1, 3, size, size]`."""
        data, seed, numbers = self.cfg.data, self.cfg.run.seed, np.array([number])
        index = int(sample_indices(numbers, len(self.images), seed)[0])
        width, height = self.images.sizes[[index]].T
        (window,) = crop_windows(width, height, numbers, seed, data.crop_scale, data.crop_ratio)
        flip = data.horizontal_flip and bool(flips(numbers, seed)[0])
        crop = read_crop(Path(str(self.images.paths[index])).read_bytes(), window, flip, data.crop_size)
        return network_input(shrunk(torch.from_numpy(crop.copy())[None], size), number, data, seed, torch.float32)


class Trained(NamedTuple):
    """What a training has done."""

    model: IJEPA
    losses: list[float]
    norms: list[float]  # of the gradient before clipping


def train(
    cfg: Config,
    schedule: Schedule,
    steps: int,
    batch: Callable[[int], tuple[Tensor, Masks]],
    skipped: Collection[int] = (),
    loss_of: Callable[[IJEPA, Tensor, Masks, int], Tensor] | None = None,
) -> Trained:
    """`steps` steps on whole global batches `batch(step)`; the steps in `skipped` change nothing.

    `loss_of(model, images, masks, step)` replaces the model's own loss.
    """
    model = build(cfg)
    initialise(model.encoder, cfg.run.seed, "encoder.", cfg.model.layer_scale)
    initialise(model.predictor, cfg.run.seed, "predictor.", cfg.model.layer_scale)
    model.target_encoder.load_state_dict(model.encoder.state_dict())
    optimizer, ema, losses, norms = make_optimizer(model, cfg), EMA(model), [], []
    trainable = [p for p in model.parameters() if p.requires_grad]
    for step in range(steps):
        model.set_grid(at_step(cfg, step).grid)
        loss = loss_of(model, *batch(step), step) if loss_of else model(*batch(step)).loss
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(p.grad.double().square().sum() for p in trainable))
        losses.append(float(loss.detach()))
        norms.append(float(norm))
        if step in skipped:
            continue
        if cfg.optimization.clip_grad and norm > cfg.optimization.clip_grad:
            for parameter in trainable:
                parameter.grad *= cfg.optimization.clip_grad / norm
        optimizer.apply(schedule.lr(step), schedule.weight_decay(step))
        ema.update(schedule.momentum(step))
    return Trained(model, losses, norms)
