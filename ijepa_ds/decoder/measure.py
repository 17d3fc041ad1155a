"""`ijepa-ds decoder evaluate`: distance of decoded images to the originals, compared with another image's representation."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ijepa_ds.arguments import (
    check_at_least,
    device_of,
)
from ijepa_ds.data.transforms import load_eval_images
from ijepa_ds.decoder import network
from ijepa_ds.decoder.condition import PLACE, Conditioner
from ijepa_ds.decoder.pictures import decoder_pixels, encoder_input, open_images
from ijepa_ds.durable import write_text
from ijepa_ds.terminal import track
from ijepa_ds.weights import open_source

logger = logging.getLogger(__name__)
_DISTANCES = ("pixels", "features")  # of the whole image
_OF_BLOCKS = ("pixels of the block", "features of the block")


def open_decoder(folder: Path, checkpoint: Path | None, device: torch.device, predictor: str = "trained") -> Any:
    """Open a decoder, its conditioner and its facts.

    Raises:
        ValueError: there is no decoder, or the weights do not match it.
    """
    decoder, facts = network.load(folder)
    source = open_source(checkpoint or facts["checkpoint"])
    conditioner = Conditioner(source, facts["condition"], device, predictor)
    if conditioner.width != decoder.width:
        raise ValueError(
            f"{source.path}: conditions of {conditioner.width} numbers, the decoder {folder} takes {decoder.width}; "
            "give the --checkpoint it was trained for"
        )
    return decoder.to(device), conditioner, facts


def run(args: argparse.Namespace) -> int:
    """Decode every image from its own condition and from another's; return exit code 0."""
    check_at_least(args, num=2, batch_size=1, sampler_steps=1)
    device = device_of(args.device)
    decoder, conditioner, facts = open_decoder(args.decoder, args.checkpoint, device)
    source = conditioner.source
    options = source.scan_options()
    found = open_images(args.images, "--images", options)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(args.num, len(found))).round().astype(int))
    if len(chosen) < 2:
        raise ValueError(f"--images: {args.images} has {len(chosen)} image; at least 2 are compared")
    if facts["condition"] == "patches" and len(chosen) % args.batch_size == 1:  # tokens are exchanged within a batch
        if args.batch_size == 1:
            raise ValueError("--batch-size 1: images of a batch exchange their tokens; give 2 or more")
        chosen = chosen[:-1]
    if facts["condition"] == "patches":  # neighbours in a folder are of one class
        chosen = np.random.default_rng(args.seed).permutation(chosen)
    size = max(source.grid * source.patch_size, decoder.shape.image_size)
    pixels = torch.from_numpy(load_eval_images([found[int(i)] for i in chosen], size, threads=2, max_pixels=options.max_pixels))
    conditions = {}
    conditions["true"], blocks = _conditions(conditioner, pixels, args)
    other = np.random.default_rng(args.seed).permutation(len(chosen))
    other = other[(np.argsort(other) + 1) % len(other)]  # one cycle: no image gets its own condition
    conditions["shuffled"] = conditions["true"][torch.from_numpy(other)]
    if facts["condition"] == "block":  # another image's content, this image's place
        conditions["shuffled"] = torch.cat([conditions["shuffled"][:, :-PLACE], conditions["true"][:, -PLACE:]], dim=1)
    if facts["condition"] == "patches":
        batches = zip(conditions["true"].split(args.batch_size), blocks or [], strict=True)
        conditions["shuffled"] = torch.cat([exchanged(vectors, block.cpu(), source.grid) for vectors, block in batches])
    if facts["condition"] != "image":
        _, untrained, _ = open_decoder(args.decoder, args.checkpoint, device, "untrained")
        conditions["untrained predictor"], _ = _conditions(untrained, pixels, args)
    distances = {
        name: _distances(decoder, conditioner, (pixels, vectors, blocks), args, name) for name, vectors in conditions.items()
    }
    result = {
        "images": len(chosen),
        "mean": {name: {k: float(v.mean()) for k, v in found.items()} for name, found in distances.items()},
        "differences": {
            f"{name} - true": {kind: _interval(found[kind] - distances["true"][kind], args.seed) for kind in found}
            for name, found in distances.items()
            if name != "true"
        },
        "decoder": facts,
        "sampler_steps": args.sampler_steps,
        "seed": args.seed,
    }
    write_text(args.out / "result.json", json.dumps(result, indent=2) + "\n")
    for name, kinds in result["differences"].items():
        for kind, value in kinds.items():
            low, high = value["interval_95"]
            logger.info("%s, distance in %s: %.4f (95 %% interval %.4f to %.4f)", name, kind, value["mean"], low, high)
    return 0


def _conditions(conditioner: Conditioner, pixels: Tensor, args: argparse.Namespace) -> tuple[Tensor, list[Tensor] | None]:
    """Conditions of all images [n, width], and the patches of their blocks [B, Kt], one tensor per batch.

    Masks depend only on seed and batch.
    """
    parts, blocks = [], []
    for number, start in enumerate(range(0, len(pixels), args.batch_size)):
        batch = encoder_input(pixels[start : start + args.batch_size].to(conditioner.device), conditioner.source)
        conditions = conditioner.compute(batch, args.seed * 1_000_003 + number)
        parts.append(conditions.vectors)
        blocks += [conditions.masks.targets[:, 0]] if conditions.masks else []
    return torch.cat(parts).cpu(), blocks or None


def exchanged(vectors: Tensor, block: Tensor, grid: int) -> Tensor:
    """The tokens of the image before, put at this image's block: conditions [B, N * (D + 1)], blocks of one size [B, Kt]."""
    tokens = vectors.view(len(vectors), grid**2, -1)
    places = block[:, :, None].expand(-1, -1, tokens.shape[-1])
    return torch.zeros_like(tokens).scatter_(1, places, tokens.gather(1, places).roll(1, dims=0)).flatten(1)


def _distances(
    decoder: network.Decoder,
    conditioner: Conditioner,
    images: tuple[Tensor, Tensor, list[Tensor] | None],
    args: argparse.Namespace,
    name: str,
) -> dict[str, np.ndarray]:
    """Distances of decoded to real images; the noise of an image is the same for all conditions.

    Args:
        decoder: decodes the images.
        conditioner: computes features.
        images: pixels, conditions, and the blocks' patches by batch (adds distances within the block).
        args: batch size, seed, steps.
        name: of the progress bar.
    """
    pixels, vectors, blocks = images
    found: dict[str, list[Tensor]] = {}
    for number, start in enumerate(track(range(0, len(pixels), args.batch_size), name, "batches")):
        part = slice(start, start + args.batch_size)
        conditions = vectors[part].to(conditioner.device)
        seeds = [args.seed * 1_000_003 + start + i for i in range(len(conditions))]
        drawn = network.sample(decoder, conditions, seeds, args.sampler_steps)
        real = decoder_pixels(pixels[part], decoder.shape.image_size)
        for kinds, block in ((_DISTANCES, None), (_OF_BLOCKS, blocks[number] if blocks else None)):
            if kinds is _OF_BLOCKS and block is None:
                continue
            found.setdefault(kinds[0], []).append(_pixel_distance(drawn, real, block, conditioner.source.grid))
            one, two = (
                conditioner.features(encoder_input(x.to(conditioner.device), conditioner.source), block) for x in (drawn, real)
            )
            found.setdefault(kinds[1], []).append(1 - F.cosine_similarity(one, two, dim=1).cpu())
    return {kind: torch.cat(values).double().numpy() for kind, values in found.items()}


def _pixel_distance(drawn: Tensor, real: Tensor, block: Tensor | None, grid: int) -> Tensor:
    """Root mean squared pixel difference in 0 .. 1, float32 [B], of images or of a block's patches."""
    squares = ((drawn.float() - real.float()) / 255).square().mean(dim=-1)
    if block is None:
        return squares.flatten(1).mean(dim=1).sqrt()
    inside = torch.zeros(len(real), grid * grid).scatter_(1, block.cpu(), 1.0).view(-1, 1, grid, grid)
    inside = F.interpolate(inside, size=real.shape[1:3], mode="nearest")[:, 0]
    return ((squares * inside).flatten(1).sum(dim=1) / inside.flatten(1).sum(dim=1)).sqrt()


def _interval(differences: np.ndarray, seed: int) -> dict[str, float | Sequence[float]]:
    """Mean of paired differences with a 95 % bootstrap interval; above 0 is worse than the true condition."""
    mean = float(differences.mean())
    if np.ptp(differences) == 0:
        return {"mean": mean, "interval_95": [mean, mean]}
    from scipy.stats import bootstrap  # slow to import

    rng = np.random.default_rng(seed)
    found = bootstrap((differences,), np.mean, n_resamples=10_000, rng=rng, method="percentile", batch=500)
    return {"mean": mean, "interval_95": [float(found.confidence_interval.low), float(found.confidence_interval.high)]}
