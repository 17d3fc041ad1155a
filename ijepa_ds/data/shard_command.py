"""`ijepa-ds data shard`: write a source as tar or parquet shards, for file systems that are slow with millions of files."""

from __future__ import annotations

import argparse
import logging
import re

from ijepa_ds.arguments import add_out, check_at_least
from ijepa_ds.data.index_command import add_scan_arguments, scan_options, summary
from ijepa_ds.data.shards import ROWS, write_shards
from ijepa_ds.data.sources import open_source

logger = logging.getLogger(__name__)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as `512M`; K, M and G are powers of 1024."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.upper())
    if not match or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a size such as 512M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data shard`."""
    add_scan_arguments(parser)
    add_out(parser, "folder; the same command resumes", metavar="DIR")
    parser.add_argument("--size", type=parse_size, default=parse_size("512M"), help="largest size of a shard (512M)")
    parser.add_argument("--to", choices=("tar", "parquet"), default="tar", help="format of the shards (tar)")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of parquet: most rows of a row group ({ROWS})")


def run(args: argparse.Namespace) -> int:
    """Write the shards; return 0."""
    check_at_least(args, rows=1)
    index = open_source(args.source, scan_options(args))
    made = write_shards(index, args.out, args.size, to=args.to, rows=args.rows)
    left = f"; {len(index.bad)} unreadable images excluded" if index.bad else ""
    logger.info("%s in %s%s", summary(made), args.out, left)
    return 0
