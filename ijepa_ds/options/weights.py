"""The options of `ijepa-ds export` and `ijepa-ds import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ijepa_ds.arguments import WEIGHTS, add_heads, add_out, add_step

FORMATS = ("safetensors", "timm", "hf", "published")
DTYPES = ("float32", "bfloat16", "float16")


def export(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds export`."""
    parser.add_argument("--run", required=True, help=WEIGHTS)
    add_step(parser)
    parser.add_argument("--format", dest="format_", choices=FORMATS, required=True, help="file format to write")
    parser.add_argument(
        "--which", choices=("target", "context", "predictor", "all"), help="part (default: target, the EMA; published: all)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="data type of the tensors (float32)")
    add_out(parser, "folder to make")
    add_size_arguments(parser)


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that export and import share."""
    parser.add_argument("--image-size", type=int, help="pixels; the positional embedding is evaluated for its grid")
    parser.add_argument("--patch-size", type=int, help="pixels; the patch embedding is resampled")
    add_heads(parser)


def import_(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds import`."""
    parser.add_argument("path", help="published checkpoint, timm file or folder, Hugging Face folder, export, or run")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder to make, as safetensors, float32: both encoders and the predictor, or, without one of them, the target",
    )
    add_size_arguments(parser)
