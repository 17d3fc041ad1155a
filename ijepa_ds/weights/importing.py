"""`ijepa-ds import`: check and describe weights of any format; `--out` writes them as safetensors."""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import replace

from ijepa_ds.config.sizes import SIZES
from ijepa_ds.weights import check
from ijepa_ds.weights.export import export
from ijepa_ds.weights.formats import LABELS
from ijepa_ds.weights.open import open_source
from ijepa_ds.weights.resize import resized
from ijepa_ds.weights.source import Source

logger = logging.getLogger(__name__)


def describe(source: Source) -> str:
    """A short text about a source."""
    size, side = source.size, source.grid * source.patch_size
    row = next((f"'{name}'" for name, known in SIZES.items() if known == replace(size, channels=3)), "own size")
    count = sum(math.prod(shape) for shape in check.encoder_shapes(size, source.patch_size).values())
    shape = f"width {size.width}, depth {size.depth}, {size.heads} heads, mlp {size.mlp_hidden}"
    grid, positions = source.grid, source.position_grid
    learnt = "" if grid == positions else f", positions learnt on {positions} x {positions}"
    lines = [
        f"{source.path}: {source.kind}" + ("" if source.step is None else f", step {source.step}"),
        f"  holds      {', '.join(source.parts)}",
        f"  encoder    {row}: {shape}; {count:,} parameters",
        f"  images     {side} x {side}, patches of {source.patch_size}: {grid} x {grid}{learnt}; {size.channels} channels",
        f"  pixels     mean {list(source.mean)}, deviation {list(source.std)}",
    ]
    if source.predictor:
        p = source.predictor
        lines.append(f"  predictor  width {p.width}, depth {p.depth}, {p.heads or 'unknown'} heads")
    return "\n".join(lines)


def run(args: argparse.Namespace) -> int:
    """Check, describe and, with `--out`, write; return exit code 0."""
    source = resized(open_source(args.path, args.heads), args.image_size, args.patch_size)
    for note in source.notes:
        logger.info("%s: %s", source.path, note)
    logger.info("%s", describe(source))
    path = str(args.path)
    if args.out:
        whole = set(source.parts) == set(LABELS)
        path = str(export(source, args.out, which="all" if whole else None).parent)
        logger.info("written: %s", path)
    logger.info("continue pretraining from it: model.init_from=%s", path)
    return 0
