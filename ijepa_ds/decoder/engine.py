"""A decoder under ZeRO, with a sharded float32 moving average of its weights."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from ijepa_ds.decoder import network
from ijepa_ds.decoder.learner import Learner, Tensors
from ijepa_ds.decoder.network import Decoder, Shape
from ijepa_ds.distributed.environment import world_from_environment
from ijepa_ds.distributed.world import mean_over_ranks
from ijepa_ds.model import cpu
from ijepa_ds.zero import linear
from ijepa_ds.zero.ema import ShardedEMA
from ijepa_ds.zero.gather import gathered
from ijepa_ds.zero.layout import ZeroLayout
from ijepa_ds.zero.norm import norm_once
from ijepa_ds.zero.publish import place_buffers

_BUFFERS = ("mean", "scale")


class _Pair(nn.Module):
    """The decoder and its average in one module, so that one engine shards both."""

    def __init__(self, shape: Shape, width: int) -> None:
        super().__init__()
        self.decoder = Decoder(shape, width)
        self.average = Decoder(shape, width).requires_grad_(False)

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
        """Compute the loss of a micro-batch (`network.loss`)."""
        return network.loss(self.decoder(noisy, time, condition), clean, weight)


class ShardedLearner(Learner):
    """Weights, optimizer and moving average of a decoder on all ranks, at any ZeRO stage."""

    def __init__(self, shape: Shape, width: int, device: torch.device, ds_config: dict[str, Any], seed: int) -> None:
        """Build and shard the network.

        Args:
            shape: shape of the network.
            width: width of a condition.
            device: this rank's device.
            ds_config: the complete DeepSpeed configuration (`config.deepspeed_json.read_deepspeed`).
            seed: seed of the start values.
        """
        self.rank, _, self.world_size = world_from_environment()
        self.device, self.shape, self.width = device, shape, width
        self.accumulation = ds_config["gradient_accumulation_steps"]
        self.stage = ds_config["zero_optimization"]["stage"]
        torch.manual_seed(seed)
        linear.install()
        with deepspeed.zero.Init(config_dict_or_path=ds_config, enabled=self.stage == 3):
            model = _Pair(shape, width)
        place_buffers(model, device)
        if device.type == "cpu":
            cpu.tune(model, torch.bfloat16 if "bf16" in ds_config else torch.float32)
        optimizer = torch.optim.AdamW(model.decoder.parameters(), lr=shape.lr, weight_decay=0.0, fused=True)
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
        norm_once(self.engine.optimizer)
        self.decoder = self.engine.module.decoder
        for name in _BUFFERS:  # DeepSpeed has cast them to the type of the weights
            setattr(self.decoder, name, getattr(self.decoder, name).float())
        self.layout = ZeroLayout(self.engine, dict(self.decoder.named_parameters()))
        self.layout.forget_moments()
        self.ema = ShardedEMA(self.engine, self.decoder, self.engine.module.average)
        if device.type == "cpu":
            cpu.keep_memory()

    def backward(self, noisy: Tensor, time: Tensor, condition: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
        """Compute the gradients of a micro-batch; returns its loss."""
        loss = self.engine(noisy, time, condition, clean, weight)
        self.engine.backward(loss)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()  # no update: DeepSpeed counts its micro-batches here
        return loss.detach()

    def update(self, lr: float, decay: float) -> None:
        """Update weights and average; a step whose gradient is not finite is skipped."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        if self.engine.was_step_applied():
            self.ema.update(decay)

    def mean(self, value: Tensor) -> float:
        """Mean of a value over the ranks."""
        return float(mean_over_ranks(value.clone()))

    def average(self) -> Decoder | None:
        """The averaged decoder on rank 0, None elsewhere; every rank calls it."""
        whole = Decoder(self.shape, self.width).requires_grad_(False).to(self.device) if self.rank == 0 else None
        for name, values in gathered(self.ema.layout, self.ema.average):
            if whole is not None:
                parameter = whole.get_parameter(name)
                parameter.copy_(values.view_as(parameter))
        for name in _BUFFERS if whole is not None else ():
            getattr(whole, name).copy_(getattr(self.decoder, name))
        return whole

    def tensors(self) -> Tensors | None:
        """The training state in host memory on rank 0, None elsewhere; every rank calls it."""
        slots = range(self.layout.num_slots)
        moments = [self.layout.moments(slot) for slot in slots]
        buffers = {
            "master": (self.layout, [self.layout.master(slot) for slot in slots]),
            "exp_avg": (self.layout, [found["exp_avg"] for found in moments]),
            "exp_avg_sq": (self.layout, [found["exp_avg_sq"] for found in moments]),
            "average": (self.ema.layout, self.ema.average),
        }
        found: Tensors = {"buffers": {name: getattr(self.decoder, name).cpu() for name in _BUFFERS}}
        for kind, (layout, parts) in buffers.items():
            found[kind] = {name: whole.cpu() for name, whole in gathered(layout, parts) if self.rank == 0}
        return found if self.rank == 0 else None

    @torch.no_grad()
    def load(self, tensors: Tensors, step: int) -> None:
        """Restore the state after `step` steps, saved on any number of ranks at any stage."""
        for name in _BUFFERS:
            getattr(self.decoder, name).copy_(tensors["buffers"][name])
        moments = [
            [torch.zeros_like(self.layout.master(slot)) for _ in ("exp_avg", "exp_avg_sq")]
            for slot in range(self.layout.num_slots)
        ]
        for piece in self.layout.pieces:
            part = slice(piece.start, piece.start + piece.numel)
            for kind, buffer in zip(
                ("master", "exp_avg", "exp_avg_sq"), (self.layout.master(piece.slot), *moments[piece.slot]), strict=True
            ):
                self.layout.view(buffer, piece).copy_(tensors[kind][piece.name].flatten()[part])
        for slot, (one, two) in enumerate(moments):
            self.layout.set_moments(slot, one, two, step)
        self.layout.publish_masters()
        for piece in self.ema.pieces:
            part = slice(piece.start, piece.start + piece.numel)
            self.ema.layout.view(self.ema.average[piece.slot], piece).copy_(tensors["average"][piece.name].flatten()[part])
        self.ema.publish()

    def describe(self) -> str:
        """Number of parameters, ZeRO stage and devices, in one line."""
        numbers = sum(getattr(p, "ds_numel", p.numel()) for p in self.decoder.parameters())
        return f"decoder of {numbers:,} parameters under ZeRO-{self.stage} on {self.world_size} x {self.device.type}"
