"""The decoder network: presets, files, loss and sampler."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.durable import replacing, save_tensors

FILES = ("decoder.json", "decoder.safetensors")
NOISE_STEPS = 1000
_WARM_UP = 0.05
_FORMAT = 2  # 1 predicted velocities
OUTSIDE = 0.1  # of new decoders of tokens: nothing tells them what is outside the block


@dataclass(frozen=True)
class Shape:
    """Network size and training settings."""

    image_size: int
    channels: tuple[int, ...]  # by resolution; each is half of the one before
    attention: tuple[bool, ...]  # self-attention at this resolution
    layers: int  # residual blocks per resolution
    batch_size: int
    steps: int
    lr: float  # maximum: linear warm-up over 5 % of the steps, then cosine decay to 0
    ema: float  # of the decoder's weights
    patch: int = 1  # pixel unshuffle by this factor at input and output: cheaper convolutions
    grid: int = 0  # conditions are the tokens of so many patches along a side; 0: one pooled vector
    outside: float = 1.0  # weight in the loss of a pixel without a token; with a token: 1

    def rate(self, step: int) -> float:
        """Learning rate of a step, from 0."""
        share = (step + 1) / self.steps
        if share < _WARM_UP:
            return self.lr * share / _WARM_UP
        return self.lr * 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP)))

    def decay(self, step: int) -> float:
        """Decay of the moving average at a step; smaller at the start."""
        return min(self.ema, (1 + step) / (10 + step))


PRESETS = {
    # 32 to 64 pixels, a CPU
    "cpu": Shape(32, (32, 64, 64), (False, False, True), 1, 32, 4_000, 1e-3, 0.998, patch=2),
    # 128 to 256 pixels, GPUs
    "gpu": Shape(128, (128, 256, 384, 512), (False, False, True, True), 2, 128, 200_000, 1e-4, 0.9999),
}


def diffusers() -> Any:
    """Import diffusers.

    Raises:
        ValueError: it is not installed; says how to install it.
    """
    try:
        import diffusers as library
    except ImportError as error:
        raise ValueError("the decoder needs diffusers: pip install 'ijepa_ds[decoder]'") from error
    return library


class Decoder(nn.Module):
    """Predicts the clean image from a noisy one, conditioned on a representation.

    A pooled vector scales and shifts every residual block (FiLM). Tokens enter beside the image, at their patches.

    It does not predict the noise: a small network cannot reproduce it, and the residual shows as grain.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        """Build the network for conditions of `width` values."""
        super().__init__()
        self.shape, self.width = shape, width
        inner = 4 * shape.channels[0]  # width of the UNet's time embedding
        self.mean: Tensor
        self.scale: Tensor
        size = width // shape.grid**2 - 1 if shape.grid else width  # of a token, or of the pooled vector
        shown = shape.channels[0] if shape.grid else 0
        self.register_buffer("mean", torch.zeros(size))  # of the conditions, which are standardised
        self.register_buffer("scale", torch.ones(size))
        self.embed = nn.Sequential(nn.Linear(size, inner), nn.SiLU(), nn.Linear(inner, shown or inner))
        self.unet = diffusers().UNet2DModel(
            sample_size=shape.image_size // shape.patch,
            in_channels=3 * shape.patch**2 + shown,
            out_channels=3 * shape.patch**2,
            block_out_channels=shape.channels,
            layers_per_block=shape.layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in shape.attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(shape.attention)),
            norm_num_groups=8,
            class_embed_type=None if shape.grid else "identity",
            resnet_time_scale_shift="scale_shift",
        )

    def set_scale(self, conditions: Tensor) -> None:
        """Set mean and standard deviation from conditions [n, width]; of tokens, those in a block count."""
        if self.shape.grid:
            tokens = conditions.view(-1, len(self.mean) + 1)
            conditions = tokens[tokens[:, -1] > 0, :-1]
        self.mean.copy_(conditions.mean(dim=0))
        self.scale.copy_(conditions.std(dim=0, correction=min(1, len(conditions) - 1)).clamp(min=1e-3))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """`noisy: [B, 3, S, S]`, `time: [B]`, `condition: [B, width]` -> the image `[B, 3, S, S]`; all float32."""
        dtype: torch.dtype = self.unet.dtype
        squares = F.pixel_unshuffle(noisy, self.shape.patch).to(dtype)
        if self.shape.grid:
            squares = torch.cat([squares, self._tokens(condition, squares.shape[-1], dtype)], dim=1)
            labels = None
        else:
            labels = self.embed(((condition - self.mean) / self.scale).to(dtype))
        return F.pixel_shuffle(self.unet(squares, time, class_labels=labels).sample, self.shape.patch).float()

    def _tokens(self, condition: Tensor, side: int, dtype: torch.dtype) -> Tensor:
        """Tokens `[B, N * (D + 1)]` as channels at their patches `[B, C, side, side]`; zeros outside the block."""
        grid = self.shape.grid
        whole = condition.view(len(condition), grid, grid, len(self.mean) + 1)
        tokens, inside = whole[..., :-1], whole[..., -1:]
        embedded = self.embed(((tokens - self.mean) / self.scale).to(dtype)) * inside.to(dtype)
        return F.interpolate(embedded.permute(0, 3, 1, 2), size=(side, side), mode="nearest")


def noise_schedule(kind: str) -> Any:
    """Build diffusers' `DDPMScheduler` (for training) or `DDIMScheduler` (for sampling) with the same noise schedule."""
    return getattr(diffusers(), kind)(
        num_train_timesteps=NOISE_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )


def loss(drawn: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
    """Mean squared error of `[B, 3, S, S]`, weighted by `[B, 1, S, S]` or `[B, 1, 1, 1]`."""
    return ((drawn - clean).square() * weight).mean()


def loss_weights(schedule: Any, time: Tensor, conditions: Tensor, shape: Shape) -> Tensor:
    """Loss weights of pixels at times `[B]`: `[B, 1, S, S]` with tokens as conditions, else `[B, 1, 1, 1]`.

    An image has its signal-to-noise ratio, clamped to 1 .. 5, as its mean weight. The lower limit keeps pure noise in the
    loss, where only the condition helps; the upper one limits nearly clean images. With tokens `[B, N * (D + 1)]`, a pixel
    outside the block has `shape.outside` times the weight of one inside.
    """
    signal = schedule.alphas_cumprod[time.cpu()]
    weight: Tensor = (signal / (1 - signal)).clamp(1.0, 5.0).to(time.device)[:, None, None, None]
    if not shape.grid:
        return weight
    inside = conditions.view(len(conditions), 1, shape.grid, shape.grid, -1)[..., -1]
    share = inside + shape.outside * (1 - inside)
    share = share / share.mean(dim=(2, 3), keepdim=True)
    return weight * F.interpolate(share, size=(shape.image_size, shape.image_size), mode="nearest")


@torch.no_grad()
def sample(decoder: Decoder, conditions: Tensor, seeds: list[int], steps: int = 50) -> Tensor:
    """Sample one image per condition by DDIM (deterministic given its noise).

    Args:
        decoder: on the device of the conditions.
        conditions: [B, width].
        seeds: B seeds of the initial noise.
        steps: of the sampler.

    Returns:
        uint8 [B, S, S, 3] on the CPU.
    """
    scheduler = noise_schedule("DDIMScheduler")
    scheduler.set_timesteps(steps)
    side = decoder.shape.image_size
    start = [torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    x = torch.stack(start).to(conditions.device)
    for time in scheduler.timesteps:
        image = decoder(x, time.to(x.device).expand(len(x)), conditions)
        x = scheduler.step(image, time, x).prev_sample
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def save(folder: Path, decoder: Decoder, facts: dict[str, Any]) -> None:
    """Write weights, shape and facts, each file atomically."""
    description = {"format": _FORMAT, "shape": asdict(decoder.shape), "width": decoder.width} | facts
    for name in FILES:
        with replacing(folder / name) as partial:
            if name.endswith(".json"):
                partial.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            else:
                save_tensors({key: value.contiguous() for key, value in decoder.state_dict().items()}, partial)


def load(folder: Path) -> tuple[Decoder, dict[str, Any]]:
    """Load a trained decoder (CPU, frozen) and its facts.

    Raises:
        ValueError: there is no decoder, or it is damaged.
    """
    if not all((folder / name).is_file() for name in FILES):
        raise ValueError(f"--decoder: {folder} has no {' and '.join(FILES)}; train one with `ijepa-ds decoder train`")
    try:
        description = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        if description["format"] != _FORMAT:
            raise KeyError(f"format {description['format']}, this version reads {_FORMAT}")
        shape = description["shape"] | {key: tuple(description["shape"][key]) for key in ("channels", "attention")}
        decoder = Decoder(Shape(**shape), description["width"])
        decoder.load_state_dict(load_file(folder / FILES[1]))
    except (KeyError, TypeError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"--decoder: {folder}: damaged, or of another version ({error})") from error
    return decoder.eval().requires_grad_(False), description
