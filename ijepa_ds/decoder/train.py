"""`ijepa-ds decoder train`: train a diffusion model of images conditioned on frozen representations."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.arguments import device_of
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.decoder import network
from ijepa_ds.decoder.condition import Conditioner
from ijepa_ds.decoder.learner import Learner
from ijepa_ds.decoder.network import Shape
from ijepa_ds.decoder.options import shape_of
from ijepa_ds.decoder.pictures import Pictures, decoder_pixels, encoder_input, image_numbers, open_images, training_batches
from ijepa_ds.durable import replacing
from ijepa_ds.telemetry.event_log import Log
from ijepa_ds.terminal import Bar, track
from ijepa_ds.weights import open_source

logger = logging.getLogger(__name__)

STATE = "state.pt"  # state for resuming
_SCALED_BY = 512  # conditions used for mean and standard deviation
_SHOWN = 8  # images in TensorBoard's samples
_LOG_EVERY = 20
_CONDITIONS_KEPT = 1 << 28  # bytes


def run(args: argparse.Namespace) -> int:
    """Train or resume; return exit code 0."""
    shape = shape_of(args)
    device = device_of(args.device)
    shape, conditioner, images = open_inputs(args, shape, device)
    Trainer(args, shape, conditioner, images, Learner(shape, conditioner.width, device, args.precision, args.seed)).train()
    return 0


def open_inputs(args: argparse.Namespace, shape: Shape, device: torch.device) -> tuple[Shape, Conditioner, ImageFiles]:
    """The network's shape with the grid of its conditions, the frozen networks, and the images to learn to draw.

    Raises:
        ValueError: the options name something that cannot be used.
    """
    network.diffusers()
    source = open_source(args.checkpoint, args.heads)
    if source.size.channels != 3 or not source.values.plain:
        raise ValueError(f"{args.checkpoint}: decoders draw RGB images of 8 bits; this model was trained on others")
    conditioner = Conditioner(source, args.condition, device)
    images = open_images(args.data, "--data", source.scan_options())
    if len(images) < shape.batch_size:
        raise ValueError(f"--data: {args.data} has {len(images)} images, fewer than a batch of {shape.batch_size}")
    outside = network.OUTSIDE if conditioner.grid else 1.0
    return replace(shape, grid=conditioner.grid, outside=outside), conditioner, images


class Trainer:
    """Trains a decoder on one process, or on several that share each batch."""

    def __init__(
        self, args: argparse.Namespace, shape: Shape, conditioner: Conditioner, images: ImageFiles, learner: Learner
    ) -> None:
        """Start, or load the state that an earlier attempt saved.

        Raises:
            ValueError: `--out` belongs to another training.
        """
        self.args, self.shape, self.conditioner, self.learner = args, shape, conditioner, learner
        self.source, self.device, self.images = conditioner.source, conditioner.device, images
        size = max(self.source.grid * self.source.patch_size, shape.image_size)
        self.pictures = Pictures(images, size, self.source.scan_options().max_pixels)
        self.share = shape.batch_size // learner.world_size  # images of this rank
        self.noise = network.noise_schedule("DDPMScheduler")
        self._kept: Tensor | None = None
        self.done = self._resume()

    def _task(self) -> dict[str, Any]:
        """Settings that must match to resume."""
        shape = json.loads(json.dumps(asdict(self.shape)))
        return {
            # older states lack keys of conditions that are tokens
            "shape": {key: value for key, value in shape.items() if self.shape.grid or key not in ("grid", "outside")},
            "condition": self.args.condition,
            "checkpoint": str(self.source.path.resolve()),
            "seed": self.args.seed,
            "images": len(self.pictures.images),
            "data": self.images.checksum,
        }

    def _resume(self) -> int:
        path = self.args.out / STATE
        if not path.is_file():
            self.args.out.mkdir(parents=True, exist_ok=True)
            return 0
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        task = self._task()
        before = {"data": task["data"]} | state["task"]  # states of before December 2026 do not say which images they saw
        if before != task:
            changed = [key for key, value in task.items() if before.get(key) != value]
            raise ValueError(f"--out: {self.args.out} holds another training (other {', '.join(changed)}); give another folder")
        self.learner.load(state["tensors"], state["step"])
        if self.learner.rank == 0:
            logger.info("continuing %s at step %d", self.args.out, state["step"])
        return int(state["step"])

    def train(self) -> None:
        """Train to the last step."""
        rank, total, counted = self.learner.rank, torch.zeros((), device=self.device), 0
        log = Log(self.args.out, rank, purge_step=self.done + 1)
        if self.done == 0:
            self.learner.set_scale(self._first_conditions())
        self._keep_conditions()
        batches = training_batches(
            self.pictures, self.shape.batch_size, self.args.seed, self.done, rank, self.learner.world_size
        )
        bar = Bar("decoder", self.shape.steps, "steps", done=self.done, show=rank == 0, always=True)
        try:
            while self.done < self.shape.steps:
                numbers, pixels = next(batches)
                total += self._step(numbers, pixels.to(self.device))
                self.done, counted = self.done + 1, counted + 1
                bar.update()
                last = self.done == self.shape.steps
                saves = self.done % self.args.save_every == 0 or last
                if self.done % _LOG_EVERY == 0 or saves:
                    loss, counted = self.learner.mean(total / counted), 0
                    total.zero_()
                    self._check(loss)
                    log.scalars(self.done, {"decoder/loss": loss})
                    bar.note = f"loss {loss:.4f}"
                if saves:
                    self._save(log)
        finally:
            batches.close()
            bar.close()
            log.close()
        if rank == 0:
            logger.info("done: %d steps, in %s", self.done, self.args.out)
            logger.info(
                "  next  ijepa-ds visualize decode --decoder %s --images IMAGES --out PICTURES", shlex.quote(str(self.args.out))
            )

    def _check(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ValueError(f"the decoder's loss is {loss} at step {self.done}: lower --lr; it is not saved")

    def _step(self, numbers: np.ndarray, pixels: Tensor) -> Tensor:
        """One update on this rank's share of the batch; random numbers are functions of seed, step and position."""
        seed, first = self.args.seed * 1_000_003 + self.done, self.learner.rank * self.share
        mine, side = slice(first, first + self.share), self.shape.image_size
        conditions = self._conditions(numbers, pixels, seed, first)
        clean = decoder_pixels(pixels, side).permute(0, 3, 1, 2).float() / 127.5 - 1
        chance = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.shape.batch_size, 3, side, side, generator=chance)[mine].to(self.device)
        time = torch.randint(0, network.NOISE_STEPS, (self.shape.batch_size,), generator=chance)[mine].to(self.device)
        weights = network.loss_weights(self.noise, time, conditions, self.shape)
        whole = (self.noise.add_noise(clean, noise, time), time, conditions, clean, weights)
        micro_batches = zip(*(x.chunk(self.learner.accumulation) for x in whole), strict=True)
        losses = [self.learner.backward(*parts) for parts in micro_batches]
        self.learner.update(self.shape.rate(self.done), self.shape.decay(self.done))
        return torch.stack(losses).mean()

    def _conditions(self, numbers: np.ndarray, pixels: Tensor, seed: int, first: int) -> Tensor:
        """Conditions of this rank's share of a batch."""
        if self._kept is not None:
            return self._kept[torch.from_numpy(numbers).to(self.device)]
        images = encoder_input(pixels, self.source)
        return self.conditioner.compute(images, seed, first=first, of=self.shape.batch_size).vectors

    def _first_conditions(self) -> Tensor:
        """Conditions of the first training images, the same on every rank, for mean and standard deviation."""
        batch, conditions = self.shape.batch_size, []
        for step in range(-(-min(_SCALED_BY, len(self.pictures.images)) // batch)):
            pixels = self.pictures.read(image_numbers(step, batch, len(self.pictures.images), self.args.seed))
            conditions.append(self.conditioner.compute(encoder_input(pixels.to(self.device), self.source), step).vectors)
        return torch.cat(conditions)

    def _keep_conditions(self) -> None:
        """Cache the conditions of whole images, which never change, if they fit in memory and are used more than once."""
        total = len(self.pictures.images)
        again = self.shape.steps * self.shape.batch_size >= 2 * total
        if self.args.condition != "image" or not again or 4 * total * self.conditioner.width > _CONDITIONS_KEPT:
            return
        conditions = []
        order = np.arange(total)
        parts = [order[start : start + 64] for start in range(0, total, 64)]
        for numbers in track(parts, "conditions", "batches", show=self.learner.rank == 0):
            pixels = self.pictures.read(numbers).to(self.device)
            conditions.append(self.conditioner.compute(encoder_input(pixels, self.source), 0).vectors)
        self._kept = torch.cat(conditions)

    def _save(self, log: Log) -> None:
        """Write samples to TensorBoard, the averaged weights, and the state for resuming."""
        average, tensors = self.learner.average(), self.learner.tensors()
        if average is None or tensors is None:
            return  # rank 0 writes
        log.image(self.done, "decoder/samples", self._samples(average))
        log.flush()
        facts = self._task() | {"step": self.done, "which_step": self.source.step, "precision": self.args.precision}
        network.save(self.args.out, average, facts)
        with replacing(self.args.out / STATE) as partial:
            torch.save({"task": self._task(), "step": self.done, "tensors": tensors}, partial)

    def _samples(self, average: network.Decoder) -> Tensor:
        """Images above samples of the averaged decoder: uint8 [2 S, n S, 3]; always the same images, blocks and noise."""
        numbers = np.unique(np.linspace(0, len(self.pictures.images) - 1, _SHOWN).round().astype(np.int64))
        pixels = self.pictures.read(numbers).to(self.device)
        conditions = self.conditioner.compute(encoder_input(pixels, self.source), 0)
        drawn = network.sample(average, conditions.vectors, list(range(len(pixels))), steps=25)
        rows = [decoder_pixels(pixels, self.shape.image_size).cpu(), drawn]
        return torch.cat([torch.cat(list(row), dim=1) for row in rows], dim=0)
