"""`ijepa-ds data index`: scan a source once, so that later runs start without a scan."""

from __future__ import annotations

import argparse
import logging
import os
import time

from ijepa_ds.arguments import add_columns, add_out, add_seed, add_source, parse_level
from ijepa_ds.data.classes import describe_classes
from ijepa_ds.data.forms import describe_forms
from ijepa_ds.data.index import ImageIndex, describe
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.values import Values

logger = logging.getLogger(__name__)


def add_scan_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that scans a source."""
    add_source(parser)
    parser.add_argument("--max-pixels", type=int, default=100_000_000, help="as data.max_pixels (default 100 million)")
    parser.add_argument("--class-level", type=parse_level, metavar="N", help="as data.class_level (default: all folders)")
    parser.add_argument("--tar-end", choices=("error", "warn"), default="error", help="as data.tar_end (default error)")
    add_columns(parser)
    parser.add_argument("--arrays", choices=("hwc", "chw"), help="as data.arrays (default: NumPy files are no images)")


def add_stats_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data stats`."""
    add_scan_arguments(parser)
    add_out(parser, "folder for stats.json and stats.png")
    parser.add_argument("--sample", type=int, default=10_000, help="images to decode, at random; 0: all (default 10000)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    add_seed(parser, "of the sample")


def scan_options(args: argparse.Namespace, *, checksum: bool = False) -> ScanOptions:
    """Return the options of a scan that the command line gives."""
    return ScanOptions(
        max_pixels=args.max_pixels,
        checksum=checksum,
        progress=True,
        tar_end=args.tar_end,
        class_level=args.class_level,
        image_column=args.image_column,
        label_column=args.label_column,
        values=Values(layout=args.arrays),
        one_form=False,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data index`."""
    add_scan_arguments(parser)
    add_out(parser, "file to write; give it to data.source", metavar="INDEX")
    parser.add_argument(
        "--checksum", action="store_true", help="read every file and store a checksum; later reads are compared with it"
    )


def run(args: argparse.Namespace) -> int:
    """Scan the source and write its index; return 0, also if some images are unreadable."""
    start = time.perf_counter()
    index = open_source(args.source, scan_options(args, checksum=args.checksum))
    index.save(args.out)
    seconds = time.perf_counter() - start
    logger.info("%s in %s (%.1f s)", summary(index), args.out, seconds)
    return 0


def summary(index: ImageIndex) -> str:
    """Return the numbers of images, classes, tars and unreadable images on one line."""
    bad = index.list_bad()
    return (
        f"{len(index):,} images, {describe_classes(index)}; {_files(index)}, {len(bad)} unreadable"
        + (f" ({describe(bad)})" if bad else "")
        + describe_forms(index)
    )


def _files(index: ImageIndex) -> str:
    groups = [container.path for container in index.containers if container.column]
    tars = sum(bool(container.fingerprint) for container in index.containers) - len(groups)
    return f"{tars} tars" + (f", {len(set(groups))} parquet files of {len(groups)} row groups" if groups else "")
