"""The network that the options of `ijepa-ds decoder train` describe."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ijepa_ds.arguments import below
from ijepa_ds.decoder.network import PRESETS, Shape


def shape_of(args: argparse.Namespace) -> Shape:
    """The preset, changed by the options that were given.

    Raises:
        ValueError: a size that the resolutions do not divide, or numbers below 1; all at once.
    """
    shape = PRESETS[args.preset]
    given = {"image_size": args.size, "steps": args.steps, "batch_size": args.batch_size, "lr": args.lr}
    shape = replace(shape, **{key: value for key, value in given.items() if value is not None})
    if args.channels:
        levels = len(args.channels)
        shape = replace(shape, channels=args.channels, attention=(False,) * (levels - 1) + (True,))
    factor = shape.patch * 2 ** (len(shape.channels) - 1)
    wrong = []
    if shape.image_size < factor or shape.image_size % factor:
        wrong.append(f"--size {shape.image_size}: expected a multiple of {factor} ({len(shape.channels)} resolutions)")
    if shape.lr <= 0:
        wrong.append(f"--lr {shape.lr}: expected a number above 0")
    wrong += below(args, steps=1, batch_size=1, save_every=1)
    if wrong:
        raise ValueError("\n".join(wrong))
    return shape
