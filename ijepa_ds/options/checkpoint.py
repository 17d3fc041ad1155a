"""The options of `ijepa-ds checkpoint`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument(
        "action",
        choices=("list", "verify", "prune"),
        help="list: names and sizes; verify: also checksums; prune: delete old ones",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--json", action="store_true", help="list, verify: one JSON object a line")
    parser.add_argument(
        "--keep-last", type=int, default=2, metavar="N", help="prune: keep the newest N complete ones (default 2)"
    )
    parser.add_argument("--keep-every", type=int, default=0, metavar="N", help="prune: also keep steps that are multiples of N")
