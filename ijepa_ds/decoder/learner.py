"""Training state of a decoder on one process. `decoder.engine` has the sharded one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.decoder import network
from ijepa_ds.decoder.network import Decoder, Shape
from ijepa_ds.model import cpu

Tensors = dict[str, dict[str, Tensor]]  # kind -> name -> values: whole float32 tensors, also from sharded training
KINDS = ("master", "exp_avg", "exp_avg_sq", "average", "buffers")
CLIP = 1.0  # norm of the gradient


class Learner:
    """Weights, optimizer and moving average of a decoder on one device."""

    rank, world_size = 0, 1
    accumulation = 1  # micro-batches of a step

    def __init__(self, shape: Shape, width: int, device: torch.device, precision: str, seed: int) -> None:
        """Initialise from `seed`.

        Args:
            shape: of the network.
            width: values of a condition.
            device: for training.
            precision: float32, or bfloat16 for the matrix products.
            seed: of initialisation.
        """
        self.device, self.low = device, precision == "bfloat16"
        torch.manual_seed(seed)
        self.decoder = Decoder(shape, width).to(device)
        if device.type == "cpu":
            cpu.tune(self.decoder, torch.bfloat16 if self.low else torch.float32)
        self._average = copy.deepcopy(self.decoder).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=shape.lr, weight_decay=0.0, fused=True)

    def set_scale(self, conditions: Tensor) -> None:
        """Set mean and standard deviation from conditions [n, width], which are the same on every rank."""
        self.decoder.set_scale(conditions)

    def backward(self, noisy: Tensor, time: Tensor, condition: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
        """Add the gradients of a micro-batch; return its loss."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.low):
            drawn = self.decoder(noisy, time, condition)
        loss = network.loss(drawn, clean, weight)
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def update(self, lr: float, decay: float) -> None:
        """Update the weights and their average."""
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), CLIP)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(list(self._average.parameters()), list(self.decoder.parameters()), 1 - decay)

    def mean(self, value: Tensor) -> float:
        """Mean over ranks."""
        return float(value)

    def average(self) -> Decoder | None:
        """The averaged decoder, on rank 0. Every rank calls this."""
        for kept, now in zip(self._average.buffers(), self.decoder.buffers(), strict=True):
            kept.copy_(now)
        return self._average

    def tensors(self) -> Tensors | None:
        """The state needed to resume, on rank 0. Every rank calls this."""
        named, state = dict(self.decoder.named_parameters()), self.optimizer.state
        return {
            "master": {name: p.detach() for name, p in named.items()},
            "exp_avg": {name: state[p]["exp_avg"] for name, p in named.items()},
            "exp_avg_sq": {name: state[p]["exp_avg_sq"] for name, p in named.items()},
            "average": {name: p.detach() for name, p in self._average.named_parameters()},
            "buffers": dict(self.decoder.named_buffers()),
        }

    @torch.no_grad()
    def load(self, tensors: Tensors, step: int) -> None:
        """Restore the state after `step` steps, written by any kind of learner."""
        averages, buffers = dict(self._average.named_parameters()), dict(self.decoder.named_buffers())
        for name, parameter in self.decoder.named_parameters():
            parameter.copy_(tensors["master"][name].view_as(parameter))
            averages[name].copy_(tensors["average"][name].view_as(parameter))
            state: dict[str, Any] = {"step": torch.tensor(float(step), device=self.device)}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = tensors[key][name].view_as(parameter).to(self.device, copy=True)
            self.optimizer.state[parameter] = state
        for name, buffer in buffers.items():
            buffer.copy_(tensors["buffers"][name])
