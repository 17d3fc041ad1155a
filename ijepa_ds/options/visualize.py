"""The options of `ijepa-ds visualize`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ijepa_ds.arguments import (
    WEIGHTS,
    add_batch_size,
    add_decoder,
    add_device,
    add_heads,
    add_out,
    add_seed,
    add_step,
    with_example,
)

_DECODE = "samples of what the predictor puts in a block, by a trained decoder"


_ENCODER = ("pca", "similarity", "attention")  # kinds that use one encoder


@dataclass(frozen=True)
class Kind:
    """A verb below `visualize`: a line of help, its own options."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]


def _no_options(_: argparse.ArgumentParser) -> None:
    """None beside the common ones."""


def _pca_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--background", action="store_true", help="colour the background, too")
    _position_option(parser)


def _position_option(parser: argparse.ArgumentParser) -> None:
    text = "take from every patch the mean of all images at its position (positions dominate small models)"
    parser.add_argument("--remove-position", action="store_true", help=text)


def _similarity_options(parser: argparse.ArgumentParser) -> None:
    text = "ROW,COLUMN of the patch compared with all others, from 0; several may be given (the centre)"
    parser.add_argument("--patch", type=_row_and_column, action="append", metavar="ROW,COLUMN", help=text)
    _position_option(parser)


def _attention_options(parser: argparse.ArgumentParser) -> None:
    text = "whose attention is shown, from 0; default: the mean over all patches, that is, what is looked at"
    parser.add_argument("--patch", type=_row_and_column, metavar="ROW,COLUMN", help=text)
    parser.add_argument("--layer", type=int, default=-1, help="block of the encoder, from 0 (-1: the last)")


def _row_and_column(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not comma or not row.strip().isdigit() or not column.strip().isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: expected ROW,COLUMN, two whole numbers from 0, such as 3,5")
    return int(row), int(column)


KINDS = {
    "masks": Kind("context and target blocks on the images", _no_options),
    "pca": Kind("principal components of patch features as colours", _pca_options),
    "similarity": Kind("cosine similarity of one patch to all others", _similarity_options),
    "attention": Kind("attention maps, head by head", _attention_options),
    "predict": Kind("cosine of predicted to true representations, block by block", _no_options),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kinds, each with its options."""
    below = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join([*KINDS, "decode"]) + "}")
    for name, kind in KINDS.items():
        sub = _parser(below, name, kind.help, "--checkpoint runs/x")
        _model(sub)
        if name in _ENCODER:
            text = "encoder: target (the EMA; default), context, or untrained (start values)"
            sub.add_argument("--which", choices=("target", "context", "untrained"), help=text)
        kind.options(sub)
    _decode(_parser(below, "decode", _DECODE, "--decoder runs/x/decoder"))


def _parser(below: argparse._SubParsersAction, name: str, text: str, option: str) -> argparse.ArgumentParser:
    parser = below.add_parser(name, help=text, description=text)
    with_example(parser, f"ijepa-ds visualize {name} {option} --images data/test --out pictures", "docs/visualize.md")
    return parser


def _model(parser: argparse.ArgumentParser) -> None:
    """The options of the verbs that draw what a model computes."""
    parser.add_argument("--checkpoint", required=True, type=Path, help=WEIGHTS)
    parser.add_argument("--image-size", type=int, help="pixels, a multiple of the patch size; default: as in training")
    add_step(parser)
    add_heads(parser)
    add_batch_size(parser, 16)
    _pictures(parser)


def _pictures(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that draws images: which images, on which device, into which folder."""
    parser.add_argument("--images", required=True, type=Path, nargs="+", help="a folder, list, tars or index; or image files")
    parser.add_argument("--num", type=int, default=8, help="images taken from a source, evenly spaced (8)")
    add_seed(parser, "for masks and samples")
    add_device(parser)
    add_out(parser, "folder for the PNGs and index.html")


def _decode(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds visualize decode`."""
    add_decoder(parser)
    parser.add_argument("--samples", type=int, default=4, help="samples of each image (4)")
    parser.add_argument("--sheet", action="store_true", help="one PNG of all images instead of one each")
    _pictures(parser)
