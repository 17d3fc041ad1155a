"""The options of `ijepa-ds decoder`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ijepa_ds.arguments import add_batch_size, add_decoder, add_device, add_heads, add_out, add_seed

VARIANTS = ("image", "block", "patches")
PRESETS = ("cpu", "gpu")


def train(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds decoder train`."""
    parser.add_argument("--checkpoint", required=True, type=Path, help="run, or other weights with encoders and predictor")
    parser.add_argument("--data", required=True, help="folder of training images")
    add_out(parser, "folder of the decoder; the same command resumes there")
    text = "condition: pooled target representation of the whole image, pooled prediction of one block, or its patches' tokens"
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


def evaluate(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds decoder evaluate`."""
    add_decoder(parser)
    parser.add_argument("--images", required=True, help="held-out images: a folder, list, tars or index")
    parser.add_argument("--num", type=int, default=500, help="images (500)")
    add_batch_size(parser, 50)
    add_seed(parser, "for masks and samples")
    add_device(parser)
    add_out(parser, "folder for result.json")
