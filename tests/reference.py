"""A slow, obvious oracle: single-process PyTorch training of the same networks, one parameter at a time, float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ijepa_ds.config import Config, at_step
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.ijepa import IJEPA, build
from ijepa_ds.model.vit import initialise


class ReferenceAdamW(torch.optim.AdamW):
    """AdamW over two groups: decayed matrices, undecayed biases and 1-D parameters."""

    def apply(self, lr: float, weight_decay: float) -> None:
        """One step with this step's hyper-parameters."""
        for group in self.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decay"] else 0.0
        self.step()


def make_optimizer(model: IJEPA) -> ReferenceAdamW:
    """Groups as in the published code."""
    trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    decayed = [p for n, p in trainable if p.ndim > 1 and not n.endswith(".bias")]
    others = [p for n, p in trainable if p.ndim == 1 or n.endswith(".bias")]
    groups = [{"params": decayed, "decay": True}, {"params": others, "decay": False}]
    return ReferenceAdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, foreach=False)


class EMA:
    """The published update, parameter by parameter."""

    def __init__(self, model: IJEPA) -> None:
        self.pairs = list(zip(model.encoder.parameters(), model.target_encoder.parameters(), strict=True))

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """target <- m * target + (1 - m) * encoder."""
        for source, target in self.pairs:
            target.mul_(momentum).add_(source, alpha=1.0 - momentum)


def train(
    cfg: Config, schedule: Schedule, steps: int, batch: Callable[[int], tuple[Tensor, Masks]]
) -> tuple[IJEPA, list[float]]:
    """`steps` steps on whole global batches `batch(step)`; the model and the losses."""
    model = build(cfg)
    initialise(model.encoder, cfg.run.seed, "encoder.")
    initialise(model.predictor, cfg.run.seed, "predictor.")
    model.target_encoder.load_state_dict(model.encoder.state_dict())
    optimizer, ema, losses = make_optimizer(model), EMA(model), []
    for step in range(steps):
        model.set_grid(at_step(cfg, step).grid)
        output = model(*batch(step))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.apply(schedule.lr(step), schedule.weight_decay(step))
        ema.update(schedule.momentum(step))
        losses.append(float(output.loss.detach()))
    return model, losses
