"""`ijepa-ds decoder train`: a diffusion model of images, told a frozen representation."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from ijepa_ds.decoder import network
from ijepa_ds.decoder.condition import VARIANTS, Conditioner
from ijepa_ds.decoder.network import PRESETS, Decoder, Shape
from ijepa_ds.decoder.pictures import decoder_pixels, encoder_input, images_of, training_batches
from ijepa_ds.event_log import Log
from ijepa_ds.weights import open_source

logger = logging.getLogger(__name__)
STATE = "state.pt"  # all that resuming needs
_SCALED_BY = 512  # conditions whose mean and deviation scale all
_SHOWN = 4  # images in TensorBoard's samples
_LOG_EVERY = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds decoder train`."""
    parser.add_argument("--checkpoint", required=True, type=Path, help="run, or other weights with encoders and predictor")
    parser.add_argument("--data", required=True, help="folder of images to learn to draw")
    parser.add_argument("--out", required=True, type=Path, help="folder of the decoder; the same command resumes there")
    text = "what it is told: the pooled target representation of the whole image, or the predictor's of one block"
    parser.add_argument("--condition", choices=VARIANTS, default="block", help=text)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="cpu: 32-64 pixels; gpu: 128-256 (cpu)")
    parser.add_argument("--size", type=int, help="pixels of what is drawn; default: the preset's")
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--batch-size", type=int, help="default: the preset's")
    parser.add_argument("--lr", type=float, help="default: the preset's")
    parser.add_argument("--channels", type=_channels, help="by resolution, such as 32,64,96; default: the preset's")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products (float32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=500, help="steps (500)")
    parser.add_argument("--heads", type=int, help="attention heads, where a file of weights does not say")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (auto: cuda where there is one)")


def _channels(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 32,64,96") from error
    if len(found) < 2 or any(number < 8 or number % 8 for number in found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least two multiples of 8")
    return found


def shape_of(args: argparse.Namespace) -> Shape:
    """The preset with what the options change.

    Raises:
        ValueError: a size that the resolutions do not divide, or numbers below 1; all at once.
    """
    shape = PRESETS[args.preset]
    given = {"image_size": args.size, "steps": args.steps, "batch_size": args.batch_size, "lr": args.lr}
    shape = replace(shape, **{key: value for key, value in given.items() if value is not None})
    if args.channels:
        levels = len(args.channels)
        shape = replace(shape, channels=args.channels, attention=(False,) * (levels - 1) + (True,))
    factor = 2 ** (len(shape.channels) - 1)
    wrong = []
    if shape.image_size < factor or shape.image_size % factor:
        wrong.append(f"--size {shape.image_size}: expected a multiple of {factor} ({len(shape.channels)} resolutions)")
    for name, value in (("--steps", shape.steps), ("--batch-size", shape.batch_size), ("--save-every", args.save_every)):
        if value < 1:
            wrong.append(f"{name} {value}: expected at least 1")
    if wrong:
        raise ValueError("\n".join(wrong))
    return shape


def device_of(name: str) -> torch.device:
    """The device asked for."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)


def run(args: argparse.Namespace) -> int:
    """Train, or continue; 0."""
    shape = shape_of(args)
    network.diffusers()
    device = device_of(args.device)
    source = open_source(args.checkpoint, args.heads)
    conditioner = Conditioner(source, args.condition, device)
    images = images_of(args.data, "--data")
    if len(images) < shape.batch_size:
        raise ValueError(f"--data: {args.data} has {len(images)} images, fewer than a batch of {shape.batch_size}")
    Trainer(args, shape, conditioner, images).train()
    return 0


class Trainer:
    """One training of a decoder."""

    def __init__(self, args: argparse.Namespace, shape: Shape, conditioner: Conditioner, images: Sequence[str]) -> None:
        """Build, or read what an earlier attempt saved.

        Raises:
            ValueError: `--out` belongs to another training.
        """
        self.args, self.shape, self.conditioner, self.images = args, shape, conditioner, images
        self.source, device = conditioner.source, conditioner.device
        self.device = device
        torch.manual_seed(args.seed)
        self.decoder = Decoder(shape, conditioner.width).to(device)
        self.optimizer = torch.optim.AdamW(self.decoder.parameters(), lr=shape.lr, weight_decay=0.0)
        self.average = copy.deepcopy(self.decoder).requires_grad_(False)
        self.noise = network.noise_schedule("DDPMScheduler")
        self.done = self._resume()

    def _task(self) -> dict[str, Any]:
        """What an attempt must share with the one it continues."""
        return {
            "shape": json.loads(json.dumps(asdict(self.shape))),
            "condition": self.args.condition,
            "checkpoint": str(self.source.path.resolve()),
            "seed": self.args.seed,
            "images": len(self.images),
        }

    def _resume(self) -> int:
        path = self.args.out / STATE
        if not path.is_file():
            self.args.out.mkdir(parents=True, exist_ok=True)
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["task"] != self._task():
            changed = [key for key, value in self._task().items() if state["task"].get(key) != value]
            raise ValueError(f"--out: {self.args.out} holds another training (other {', '.join(changed)}); give another folder")
        self.decoder.load_state_dict(state["decoder"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("continuing %s at step %d", self.args.out, state["step"])
        return int(state["step"])

    def train(self) -> None:
        """To the last step."""
        log = Log(self.args.out, 0, purge_step=self.done + 1)
        size = self.source.grid * self.source.patch_size
        read = max(size, self.shape.image_size)
        batches = training_batches(self.images, read, self.shape.batch_size, self.args.seed, self.done)
        total, counted, terminal = torch.zeros((), device=self.device), 0, sys.stderr.isatty()
        bar = tqdm(
            total=self.shape.steps, initial=self.done, unit="step", desc="decoder", mininterval=0.5 if terminal else 15
        )
        try:
            while self.done < self.shape.steps:
                pixels = next(batches).to(self.device)
                total += self._step(pixels)
                self.done, counted = self.done + 1, counted + 1
                bar.update()
                if self.done % _LOG_EVERY == 0 or self.done == self.shape.steps:
                    loss, counted = float(total) / counted, 0
                    total.zero_()
                    self._check(loss)
                    log.scalars(self.done, {"decoder/loss": loss})
                    bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                if self.done % self.args.save_every == 0 or self.done == self.shape.steps:
                    log.image(self.done, "decoder/samples", self._samples(pixels[:_SHOWN]))
                    log.flush()
                    self.save()
        finally:
            batches.close()
            bar.close()
            log.close()

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(f"the decoder's loss is {loss} at step {self.done}: lower --lr; it is not saved")

    def _step(self, pixels: Tensor) -> Tensor:
        """One update; all chance is a function of (seed, step)."""
        seed = self.args.seed * 1_000_003 + self.done
        chance = torch.Generator().manual_seed(seed)
        told = self.conditioner.tell(encoder_input(pixels, self.source), seed)
        if self.done == 0:
            self._scale()
        clean = decoder_pixels(pixels, self.shape.image_size).permute(0, 3, 1, 2).float() / 127.5 - 1
        noise = torch.randn(clean.shape, generator=chance).to(self.device)
        time = torch.randint(0, network.NOISE_STEPS, (len(clean),), generator=chance).to(self.device)
        noisy = self.noise.add_noise(clean, noise, time)
        wanted = self.noise.get_velocity(clean, noise, time)
        low = self.args.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=low):
            velocity = self.decoder(noisy, time, told.vectors)
        loss = F.mse_loss(velocity.float(), wanted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self._follow()
        return loss.detach()

    @torch.no_grad()
    def _follow(self) -> None:
        """Move the average: by the preset's decay, at the start by less of the past."""
        decay = min(self.shape.ema, (1 + self.done) / (10 + self.done))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.decoder.parameters()), 1 - decay)
        for kept, now in zip(self.average.buffers(), self.decoder.buffers(), strict=True):
            kept.copy_(now)

    def _scale(self) -> None:
        """Measure how conditions are spread, before the first step."""
        size, batch = self.source.grid * self.source.patch_size, self.shape.batch_size
        batches = training_batches(self.images, size, batch, self.args.seed, 0)
        told = []
        for number in range(-(-min(_SCALED_BY, len(self.images)) // batch)):
            told.append(self.conditioner.tell(encoder_input(next(batches).to(self.device), self.source), number).vectors)
        batches.close()
        self.decoder.set_scale(torch.cat(told))

    def _samples(self, pixels: Tensor) -> Tensor:
        """Images above what the average draws for them: uint8 [2 S, n S, 3]."""
        told = self.conditioner.tell(encoder_input(pixels, self.source), 0)
        with torch.no_grad():
            drawn = network.sample(self.average, told.vectors, list(range(len(pixels))), steps=25)
        rows = [decoder_pixels(pixels, self.shape.image_size).cpu(), drawn]
        return torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0)

    def save(self) -> None:
        """Weights for use (the average), and all that resuming needs."""
        facts = self._task() | {"step": self.done, "which_step": self.source.step, "precision": self.args.precision}
        network.save(self.args.out, self.average, facts)
        aside = self.args.out / f".{STATE}.partial"
        state = {
            "task": self._task(),
            "step": self.done,
            "decoder": self.decoder.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, aside)
        network.put(aside, self.args.out / STATE)
