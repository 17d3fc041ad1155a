"""The network of a decoder, its presets, its files and its sampler."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ijepa_ds.durable import save_tensors

FILES = ("decoder.json", "decoder.safetensors")
NOISE_STEPS = 1000
_WARM_UP = 0.05
_FORMAT = 2  # 1 predicted velocities


@dataclass(frozen=True)
class Shape:
    """A network and how it is trained."""

    image_size: int
    channels: tuple[int, ...]  # by resolution, each half of the one before
    attention: tuple[bool, ...]  # self-attention at this resolution
    layers: int  # residual blocks a resolution
    batch_size: int
    steps: int
    lr: float  # the highest: up to it over 5 % of the steps, then down to 0 as a cosine
    ema: float  # of its own weights
    patch: int = 1  # squares of this side go in and out as channels: fewer pixels for the convolutions, which is cheap

    def rate(self, step: int) -> float:
        """The learning rate of step number `step`, from 0."""
        share = (step + 1) / self.steps
        if share < _WARM_UP:
            return self.lr * share / _WARM_UP
        return self.lr * 0.5 * (1 + math.cos(math.pi * (share - _WARM_UP) / (1 - _WARM_UP)))

    def decay(self, step: int) -> float:
        """Of the moving average at step number `step`: at the start less of the past."""
        return min(self.ema, (1 + step) / (10 + step))


PRESETS = {
    # 32 to 64 pixels, a CPU
    "cpu": Shape(32, (32, 64, 64), (False, False, True), 1, 32, 4_000, 1e-3, 0.998, patch=2),
    # 128 to 256 pixels, GPUs
    "gpu": Shape(128, (128, 256, 384, 512), (False, False, True, True), 2, 128, 200_000, 1e-4, 0.9999),
}


def diffusers() -> Any:
    """The library, or a message that says how to get it."""
    try:
        import diffusers as library
    except ImportError as error:
        raise ValueError("the decoder needs diffusers: pip install 'ijepa_ds[decoder]'") from error
    return library


class Decoder(nn.Module):
    """Predicts the image under the noise, told a representation (FiLM by scale and shift in every block).

    Not the noise: a small network cannot let it through, and what it leaves out stays in the picture as grain.
    """

    def __init__(self, shape: Shape, width: int) -> None:
        """A network for conditions of `width` numbers."""
        super().__init__()
        self.shape, self.width = shape, width
        inner = 4 * shape.channels[0]  # what the network's time embedding has
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.zeros(width))  # of conditions: they have much in common, which says nothing
        self.register_buffer("scale", torch.ones(width))
        self.embed = nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.unet = diffusers().UNet2DModel(
            sample_size=shape.image_size // shape.patch,
            in_channels=3 * shape.patch**2,
            out_channels=3 * shape.patch**2,
            block_out_channels=shape.channels,
            layers_per_block=shape.layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in shape.attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(shape.attention)),
            norm_num_groups=8,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )

    def set_scale(self, conditions: Tensor) -> None:
        """Measure mean and deviation of conditions [n, width]."""
        self.mean.copy_(conditions.mean(dim=0))
        self.scale.copy_(conditions.std(dim=0).clamp(min=1e-3))

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """`noisy: [B, 3, S, S]`, `time: [B]`, `condition: [B, width]` -> the image `[B, 3, S, S]`; all float32."""
        dtype: torch.dtype = self.unet.dtype
        told = self.embed(((condition - self.mean) / self.scale).to(dtype))
        squares = F.pixel_unshuffle(noisy, self.shape.patch).to(dtype)
        return F.pixel_shuffle(self.unet(squares, time, class_labels=told).sample, self.shape.patch).float()


def noise_schedule(kind: str) -> Any:
    """The `DDPMScheduler` (to train) or `DDIMScheduler` (to sample), of diffusers, with one schedule."""
    return getattr(diffusers(), kind)(
        num_train_timesteps=NOISE_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="sample"
    )


def loss(drawn: Tensor, clean: Tensor, weight: Tensor) -> Tensor:
    """Mean square of differences `[B, ...]`, weighted image by image `[B]`."""
    return ((drawn - clean).square().flatten(1).mean(dim=1) * weight).mean()


def weights(schedule: Any, time: Tensor) -> Tensor:
    """How much the error at each of `time` [B] counts: the ratio of signal to noise there, between 1 and 5.

    From 1: in full noise, too, where the condition is all there is to go by. To 5: nearly clean images are not all that counts.
    """
    signal = schedule.alphas_cumprod[time.cpu()]
    return (signal / (1 - signal)).clamp(1.0, 5.0).to(time.device)


@torch.no_grad()
def sample(decoder: Decoder, conditions: Tensor, seeds: list[int], steps: int = 50) -> Tensor:
    """Draw one image a condition by DDIM (deterministic given its noise).

    Args:
        decoder: on the device of the conditions.
        conditions: [B, width].
        seeds: B numbers; equal seeds start from equal noise.
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


def put(aside: Path, path: Path) -> None:
    """Rename a file that is safely on the disk."""
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def save(folder: Path, decoder: Decoder, facts: dict[str, Any]) -> None:
    """Write weights, shape and facts; a reader never sees half of them."""
    for name in FILES:
        aside = folder / f".{name}.partial"
        if name.endswith(".json"):
            told = {"format": _FORMAT, "shape": asdict(decoder.shape), "width": decoder.width} | facts
            aside.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        else:
            save_tensors({key: value.contiguous() for key, value in decoder.state_dict().items()}, aside)
        put(aside, folder / name)


def load(folder: Path) -> tuple[Decoder, dict[str, Any]]:
    """A trained decoder, on the CPU, frozen; and the facts beside it.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if not all((folder / name).is_file() for name in FILES):
        raise ValueError(f"--decoder: {folder} has no {' and '.join(FILES)}; train one with `ijepa-ds decoder train`")
    try:
        told = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            raise KeyError(f"format {told['format']}, this version reads {_FORMAT}")
        shape = told["shape"] | {key: tuple(told["shape"][key]) for key in ("channels", "attention")}
        decoder = Decoder(Shape(**shape), told["width"])
        decoder.load_state_dict(load_file(folder / FILES[1]))
    except (KeyError, TypeError, RuntimeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"--decoder: {folder}: damaged, or of another version ({error})") from error
    return decoder.eval().requires_grad_(False), told
