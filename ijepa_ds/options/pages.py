"""The options of `ijepa-ds report` and `ijepa-ds summary`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ijepa_ds.arguments import add_out


def report(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds report`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directory")
    add_out(parser, "folder for report.html and its PNGs")
    parser.add_argument("--images", type=Path, nargs="+", help="folder or files for the PCA; default: the run's own images")
    parser.add_argument("--num", type=int, default=4, help="images of the PCA (4)")
    parser.add_argument("--title", help="default: the names of the runs")


def summary(parser: argparse.ArgumentParser) -> None:
    """The options of `ijepa-ds summary`."""
    parser.add_argument("--run", required=True, type=Path, help="run directory: its events are read")
    parser.add_argument("--eval", type=Path, help="folder that `ijepa-ds eval --out` wrote; default: no scores")
    add_out(parser, "PNG file to write")
    parser.add_argument("--title", help="default: the run directory's name")
