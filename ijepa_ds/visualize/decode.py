"""`ijepa-ds visualize decode`: decoder samples of a representation, beside the image and its context."""

from __future__ import annotations

import argparse
import logging

import numpy as np
import torch

from ijepa_ds.arguments import check_at_least, device_of
from ijepa_ds.decoder import network
from ijepa_ds.decoder.condition import context_only
from ijepa_ds.decoder.measure import open_decoder
from ijepa_ds.decoder.pictures import decoder_pixels, encoder_input
from ijepa_ds.plotting.heat import Panel, draw_row
from ijepa_ds.visualize.gallery import Shown, write_index
from ijepa_ds.visualize.looking import read_pictures

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Draw; return exit code 0."""
    check_at_least(args, num=1, sampler_steps=1, samples=2)  # the spread of the samples is shown
    device = device_of(args.device)
    decoder, conditioner, facts = open_decoder(args.decoder, args.checkpoint, device)
    source = conditioner.source
    size, side = source.grid * source.patch_size, decoder.shape.image_size
    pictures = read_pictures(args.images, args.num, max(size, side), source.scan_options())
    pixels = torch.from_numpy(pictures.pixels)
    with torch.no_grad():
        conditions = conditioner.compute(encoder_input(pixels.to(device), source), args.seed)
    real = decoder_pixels(pixels, side)
    seen = None if conditions.masks is None else context_only(real, conditions.masks, source.grid)
    shown, limit = [], 0.0
    drawn = []
    for i in range(len(pixels)):
        vectors = conditions.vectors[i : i + 1].expand(args.samples, -1)
        seeds = [args.seed * 1_000_003 + k for k in range(args.samples)]
        drawn.append(network.sample(decoder, vectors, seeds, args.sampler_steps).numpy())
        limit = max(limit, float(_spread(drawn[-1]).max()))
    rows = []
    given = "target encoder's output" if facts["condition"] == "image" else "predictor's output for the outlined block"
    title = f"Decoder samples from the {given}"
    for i, name in enumerate(pictures.names):
        top, left, height, width = (float(x) * side for x in conditions.boxes[i])
        marks = () if conditions.masks is None else ((round(top), round(left), round(height), round(width)),)
        panels = [Panel(name[:28], real[i].numpy(), marks=marks)]
        if seen is not None:
            panels.append(Panel("context only", seen[i].numpy(), marks=marks))
        panels += [Panel(f"sample {k + 1}", one, marks=marks) for k, one in enumerate(drawn[i])]
        panels.append(Panel("spread", None, _spread(drawn[i]), (0.0, limit), marks))
        rows.append(panels)
        if not args.sheet:
            file = f"{i:03d}.png"
            draw_row(args.out / file, panels, "deviation across samples", columns=len(panels), title=title)
            shown.append(Shown(file, name, f"mean deviation across samples {_spread(drawn[i]).mean():.3f}"))
    if args.sheet:
        every = [panel for row in rows for panel in row]
        draw_row(args.out / "sheet.png", every, "deviation across samples", columns=len(rows[0]), title=title)
        shown.append(Shown("sheet.png", f"{len(rows)} images", "a row each"))
    write_index(args.out, "What the representation tells", _words(facts["condition"]), shown, _facts(args, source, facts))
    logger.info("written: %s and %d PNGs beside it", args.out / "index.html", len(shown))
    return 0


def _spread(samples: np.ndarray) -> np.ndarray:
    """Standard deviation across samples, of pixels in 0 .. 1: uint8 [K, S, S, 3] to float64 [S, S]."""
    return (samples.astype(np.float64) / 255).std(axis=0).mean(axis=-1)


def _words(condition: str) -> str:
    what = {
        "image": "the target encoder's average-pooled output for the whole image",
        "block": "the predictor's average-pooled output for the outlined block, computed from the context",
        "patches": "the predictor's output for the patches of the outlined block, computed from all other patches",
    }[condition]
    return (
        f"Each sample comes from a diffusion model conditioned only on {what}. Features common to all samples are in the "
        "representation. Features that differ (bright in the last column) are not in it, or the decoder has not learnt them."
    )


def _facts(args: argparse.Namespace, source: object, facts: dict) -> dict[str, object]:
    return {
        "decoder": args.decoder,
        "steps of the decoder": facts["step"],
        "condition": facts["condition"],
        "weights": getattr(source, "path", ""),
        "seed": args.seed,
        "DDIM steps": args.sampler_steps,
    }
