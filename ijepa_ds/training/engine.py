"""The DeepSpeed engine around the networks: start values, optimizer groups, hyper-parameters, one step.

No deepspeed object leaves this file and `ijepa_ds.zero`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor

from ijepa_ds.config import Config
from ijepa_ds.config.schedules import StepSettings
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model import compiling, cpu, flat, ijepa
from ijepa_ds.model.blocks import BLOCKS, flatten_blocks
from ijepa_ds.model.vit import initial_value
from ijepa_ds.weights.start import Start
from ijepa_ds.zero import hooks, linear
from ijepa_ds.zero.disk import check_async_io
from ijepa_ds.zero.ema import ShardedEMA
from ijepa_ds.zero.layout import ZeroLayout
from ijepa_ds.zero.norm import norm_once
from ijepa_ds.zero.publish import place_buffers

logger = logging.getLogger(__name__)


class Engine:
    """The networks under ZeRO, their optimizer and the EMA of the target encoder."""

    def __init__(self, cfg: Config, ds_config: dict[str, Any], device: torch.device, start: Start | None = None) -> None:
        """Build and shard the networks, and set their start values.

        Args:
            cfg: the run, with a concrete `model.precision`.
            ds_config: the complete DeepSpeed configuration (`config.deepspeed_json.load_deepspeed`).
            device: this rank's, from `initialise_distributed`.
            start: weights to start from; None: the start values of `cfg.run.seed`.
        """
        compiled = compiling.is_compiled(cfg.model, device)
        self.cfg, self.device = cfg, device
        self.compute_dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[cfg.model.precision]
        zero = ds_config.get("zero_optimization", {"stage": 0})
        self.stage = zero["stage"]
        if zero.get("offload_optimizer", {}).get("device") == "nvme":
            check_async_io()
        if device.type == "cpu":  # on a GPU the networks are not in host memory
            cpu.give_memory_back()
        self.note = linear.install(self.stage)  # for the banner
        with torch.device("meta"):
            model = ijepa.build(cfg)
        flatten_blocks(model, forget_weights=self.stage == 3 and not cfg.model.activation_checkpointing)
        with deepspeed.zero.Init(config_dict_or_path=ds_config, enabled=self.stage == 3):
            flat.materialise(model)
        place_buffers(model, device)
        if device.type == "cuda":
            # Mask lengths change from step to step; cuDNN's attention makes a new plan for each: 1.5 ms a call on an H100.
            torch.backends.cuda.enable_cudnn_sdp(False)
        if self.stage == 3:
            # One gather for each block instead of each layer: many small gathers are slow.
            set_z3_leaf_modules(model, list(BLOCKS), raise_if_not_found=False)
        if compiled:
            compiling.compile_blocks(model)
        elif device.type == "cpu":
            cpu.tune(model, self.compute_dtype)
        groups = parameter_groups(model)
        o = cfg.optimization
        # fused: one kernel for a whole shard, on CUDA and on CPU
        optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=0.0, fused=True)
        self.deepspeed, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
        norm_once(self.deepspeed.optimizer)
        model = self.module
        if self.stage == 3:
            hooks.fix_modules(model)
        self.layout = ZeroLayout(self.deepspeed, {n: p for n, p in model.named_parameters() if p.requires_grad})
        self.layout.forget_moments()
        self._fill(cfg.run.seed, start)
        self.ema = ShardedEMA(self.deepspeed, model.encoder, model.target_encoder)
        if start:
            self._fill_average(start)
        for name, buffer in model.named_buffers():
            assert buffer.dtype == torch.float32, f"{name} lost its precision: {buffer.dtype}"
        self.num_parameters = {
            part: sum(getattr(p, "ds_numel", p.numel()) for p in getattr(model, part).parameters())
            for part in ("encoder", "predictor")
        }
        if device.type == "cpu":
            cpu.keep_memory()
        self._norm: Tensor | float | None = None

    @property
    def module(self) -> ijepa.IJEPA:
        """The model inside DeepSpeed's engine."""
        return cast(ijepa.IJEPA, self.deepspeed.module)

    @torch.no_grad()
    def _fill(self, seed: int, start: Start | None) -> None:
        """Write the start values into this rank's master weights, then update the model."""
        for piece in self.layout.pieces:
            shape = self.layout.shapes[piece.name]
            if start:
                value = start.student(piece.name, shape)
            else:
                value = initial_value(piece.name, shape, seed, self.cfg.model.layer_scale)
            master = self.layout.view(self.layout.master(piece.slot), piece)
            master.copy_(value.reshape(-1)[piece.start : piece.start + piece.numel])
        self.layout.publish_masters()

    @torch.no_grad()
    def _fill_average(self, start: Start) -> None:
        """Write the target encoder's start values into this rank's slices of the average, then update the target."""
        for piece in self.ema.pieces:
            average = self.ema.layout.view(self.ema.average[piece.slot], piece)
            average.copy_(start.teacher(piece.name).reshape(-1)[piece.start : piece.start + piece.numel])
        self.ema.publish()

    def forward(
        self, images: Tensor, masks: Masks, mark: Callable[[str], None] | None = None, context_share: float = 1.0
    ) -> ijepa.Output:
        """One micro-batch through target encoder, context encoder and predictor (`ijepa.IJEPA.forward`).

        The image size sets the grid of patches; position embeddings are interpolated to it.

        Args:
            images: `[B, 3, H, W]`, normalised.
            masks: contexts `[B, C, Kc]` and targets `[B, M, Kt]`.
            mark: called with the name of each part when it is done.
            context_share: share of `objective.context_weight` that counts in this step.
        """
        self.module.set_grid(images.shape[-1] // self.cfg.model.patch_size)
        return self.deepspeed(images, masks, mark, context_share)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of one micro-batch; DeepSpeed averages over ranks and accumulated micro-batches."""
        self.deepspeed.backward(loss)
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()  # no update: DeepSpeed counts its micro-batches here

    def optimizer_step(self, lr: float, weight_decay: float) -> bool:
        """Run AdamW after the last micro-batch of a step; False if the step was skipped because a gradient is not finite."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decay"] else 0.0
        if self.layout.kind == "plain":  # without a wrapper, DeepSpeed computes no norm
            gradients = [p.grad for p in self.layout.named.values() if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients)
            skip = ~torch.isfinite(self._norm)
            self.deepspeed.optimizer.found_inf = skip.float()  # the fused kernel then changes neither weights nor moments
        self.deepspeed.step()
        if self.layout.kind != "plain":
            self._norm = self.deepspeed.get_global_grad_norm()
            return bool(self.deepspeed.was_step_applied())
        return not bool(skip)  # waits for the device, as DeepSpeed does at the other stages

    def step(self, settings: StepSettings, mark: Callable[[str], None]) -> bool:
        """Run the optimizer, then update the EMA.

        Args:
            settings: learning rate, weight decay and EMA momentum of the step.
            mark: called with "optimizer" and "ema" when each is done.

        Returns:
            Whether the step was applied; the EMA stays as it is if not.
        """
        applied = self.optimizer_step(settings.lr, settings.weight_decay)
        mark("optimizer")
        if applied:
            self.ema.update(settings.momentum)
        mark("ema")
        return applied

    def gradient_norm(self) -> float:
        """2-norm of the last step's gradient before clipping; synchronises with the device."""
        return float("nan") if self._norm is None else float(self._norm)

    def describe(self) -> str:
        """ZeRO stage, devices, types and number of parameters, in one line."""
        return (
            f"ZeRO-{self.stage}, {dist.get_world_size()} x {self.device.type}, weights {self.compute_dtype}, masters and "
            f"EMA float32 ({self.layout.kind}), {compiling.describe(self.cfg.model, self.device)}; "
            f"encoder {self.num_parameters['encoder']:,} parameters, "
            f"predictor {self.num_parameters['predictor']:,}"
        )


def parameter_groups(model: ijepa.IJEPA) -> list[dict[str, Any]]:
    """Optimizer groups: encoder and predictor separately, because the EMA needs it, each with and without weight decay.

    `flat.is_decayed` says which is which. All parts of a flat parameter are the same in this.
    """
    groups = []
    for part in (model.encoder, model.predictor):
        for decay in (True, False):
            members = [
                p
                for name, p in part.named_parameters()
                if {flat.is_decayed(held.name, held.shape) for held in flat.parts_of(name, p)} == {decay}
            ]
            groups.append({"params": members, "decay": decay, "weight_decay": 0.0})
    return groups
