"""`ijepa-ds visualize KIND`: draw a model's input, features and predictions as PNGs with an index.html."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import torch

from ijepa_ds.arguments import device_of
from ijepa_ds.visualize import decode as decoding
from ijepa_ds.visualize import kinds, looking
from ijepa_ds.visualize.gallery import write_index
from ijepa_ds.visualize.kinds import Look, Page

logger = logging.getLogger(__name__)
DRAW: dict[str, Callable[[Look, argparse.Namespace], Page]] = {
    "masks": kinds.draw_masks,
    "pca": kinds.draw_pca,
    "similarity": kinds.draw_similarity,
    "attention": kinds.draw_attention,
    "predict": kinds.draw_predict,
}


def run(args: argparse.Namespace) -> int:
    """Draw one kind; return exit code 0."""
    if args.kind == "decode":
        return decoding.run(args)
    source, size = looking.open_checked(args)
    pictures = looking.read_pictures(args.images, args.num, size, source.scan_options())
    device = device_of(args.device)
    look = Look(source, pictures, size, device, args.batch_size, args.seed, Path(args.out))
    with torch.no_grad():
        drawn = DRAW[args.kind](look, args)
    facts = {
        "weights": source.path,
        "step": "unknown" if source.step is None else source.step,
        "image size": f"{size} pixels, {size // source.patch_size} x {size // source.patch_size} patches",
        "images": ", ".join(pictures.names),
    } | drawn.facts
    write_index(look.out, drawn.title, drawn.words, drawn.shown, facts)
    logger.info("written: %s and %d PNGs beside it", look.out / "index.html", len(drawn.shown))
    return 0
