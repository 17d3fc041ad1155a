"""The options of `ijepa-ds decoder train`, and the network they describe."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from ijepa_ds.arguments import add_device, add_heads, add_out, add_seed, below
from ijepa_ds.decoder.condition import VARIANTS
from ijepa_ds.decoder.network import PRESETS, Shape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds decoder train`."""
    parser.add_argument("--checkpoint", required=True, type=Path, help="run, or other weights with encoders and predictor")
    parser.add_argument("--data", required=True, help="folder of training images")
    add_out(parser, "folder of the decoder; the same command resumes there")
    text = "condition: pooled target representation of the whole image, or pooled prediction of one block"
    parser.add_argument("--condition", choices=VARIANTS, default="block", help=text)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="cpu", help="cpu: 32-64 pixels; gpu: 128-256 (cpu)")
    parser.add_argument("--size", type=int, help="pixels of a sample; default: the preset's")
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--batch-size", type=int, help="default: the preset's")
    parser.add_argument("--lr", type=float, help="default: the preset's")
    parser.add_argument("--channels", type=_channels, help="by resolution, such as 32,64,96; default: the preset's")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products (float32)")
    add_seed(parser, "for images, masks and noise")
    parser.add_argument("--save-every", type=int, default=500, help="steps (500)")
    add_heads(parser)
    add_device(parser)


def _channels(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 32,64,96") from error
    if len(found) < 2 or any(number < 8 or number % 8 for number in found):
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least two multiples of 8")
    return found


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
