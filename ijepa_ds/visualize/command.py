"""`ijepa-ds visualize KIND`: draw a model's input, features and predictions as PNGs with an index.html."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ijepa_ds.arguments import device_of, with_example
from ijepa_ds.visualize import decode as decoding
from ijepa_ds.visualize import kinds, looking
from ijepa_ds.visualize.gallery import write_index
from ijepa_ds.visualize.kinds import Look, Page

logger = logging.getLogger(__name__)
_DECODE = "samples of what the predictor puts in a block, by a trained decoder"
_ENCODER = ("pca", "similarity", "attention")  # kinds that use one encoder


@dataclass(frozen=True)
class Kind:
    """A verb below `visualize`: a line of help, its own options, what draws it."""

    help: str
    options: Callable[[argparse.ArgumentParser], None]
    draw: Callable[[Look, argparse.Namespace], Page]


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
    "masks": Kind("context and target blocks on the images", _no_options, kinds.draw_masks),
    "pca": Kind("principal components of patch features as colours", _pca_options, kinds.draw_pca),
    "similarity": Kind("cosine similarity of one patch to all others", _similarity_options, kinds.draw_similarity),
    "attention": Kind("attention maps, head by head", _attention_options, kinds.draw_attention),
    "predict": Kind("cosine of predicted to true representations, block by block", _no_options, kinds.draw_predict),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The kinds, each with its options."""
    below = parser.add_subparsers(dest="kind", required=True, metavar="{" + ",".join([*KINDS, "decode"]) + "}")
    for name, kind in KINDS.items():
        sub = _parser(below, name, kind.help, "--checkpoint runs/x")
        looking.add_arguments(sub)
        if name in _ENCODER:
            text = "encoder: target (the EMA; default), context, or untrained (start values)"
            sub.add_argument("--which", choices=("target", "context", "untrained"), help=text)
        kind.options(sub)
    decoding.add_arguments(_parser(below, "decode", _DECODE, "--decoder runs/x/decoder"))


def _parser(below: argparse._SubParsersAction, name: str, text: str, option: str) -> argparse.ArgumentParser:
    parser = below.add_parser(name, help=text, description=text)
    with_example(parser, f"ijepa-ds visualize {name} {option} --images data/test --out pictures", "docs/visualize.md")
    return parser


def run(args: argparse.Namespace) -> int:
    """Draw one kind; return exit code 0."""
    if args.kind == "decode":
        return decoding.run(args)
    source, size = looking.open_checked(args)
    pictures = looking.read_pictures(args.images, args.num, size)
    device = device_of(args.device)
    look = Look(source, pictures, size, device, args.batch_size, args.seed, Path(args.out))
    with torch.no_grad():
        drawn = KINDS[args.kind].draw(look, args)
    facts = {
        "weights": source.path,
        "step": "unknown" if source.step is None else source.step,
        "image size": f"{size} pixels, {size // source.patch_size} x {size // source.patch_size} patches",
        "images": ", ".join(pictures.names),
    } | drawn.facts
    write_index(look.out, drawn.title, drawn.words, drawn.shown, facts)
    logger.info("written: %s and %d PNGs beside it", look.out / "index.html", len(drawn.shown))
    return 0
