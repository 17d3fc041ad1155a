"""`ijepa-ds data check`: read and decode every image once and list the unreadable ones."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from ijepa_ds.arguments import check_at_least
from ijepa_ds.data.headers import check_pixels, check_pixels_strictly
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_command import add_scan_arguments, scan_options, summary
from ijepa_ds.data.reading import Reader
from ijepa_ds.data.sources import open_source

logger = logging.getLogger(__name__)
_WINDOW = 256  # images in flight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data check`."""
    add_scan_arguments(parser)
    parser.add_argument("--fix-index", type=Path, metavar="INDEX", help="write an index of the good images")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="decoding threads (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Check the images and print the table; return 0 if all are readable or an index was written, else 1."""
    check_at_least(args, threads=1)
    index = open_source(args.source, scan_options(args))
    index = index.with_bad(check(index, args.max_pixels, args.threads))
    logger.info("%s", table(index))
    if args.fix_index:
        if len(index.bad) == len(index):
            raise ValueError(f"{args.source}: no readable image is left, no index written")
        fixed = index.without_bad()
        fixed.save(args.fix_index)
        logger.info("%s in %s", summary(fixed), args.fix_index)
    return 0 if args.fix_index or not index.list_bad() else 1


def check(index: ImageIndex, max_pixels: int, threads: int) -> dict[int, str]:
    """Decode every image not yet marked as unreadable.

    Args:
        index: The images.
        max_pixels: Larger images are reported.
        threads: Decoding threads.

    Returns:
        Position -> error of every unreadable image.
    """
    reader = Reader(index)

    def look(position: int) -> str:
        try:
            entry = index.entries[position]
            check_pixels(int(entry["width"]), int(entry["height"]), max_pixels)
            check_pixels_strictly(reader.read(position))
        except OSError as error:
            return error.strerror or str(error)
        except ValueError as error:
            return str(error)
        return ""

    positions = (position for position in range(len(index)) if position not in index.bad)
    bar = tqdm(desc=f"check {index.source}", total=len(index) - len(index.bad), unit="image", disable=None)
    found = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool, bar:
        for window in _windows(positions):
            for position, reason in zip(window, pool.map(look, window), strict=True):
                bar.update()
                if reason:
                    found[position] = reason
    return found


def _windows(positions: Iterator[int]) -> Iterator[list[int]]:
    return iter(lambda: list(itertools.islice(positions, _WINDOW)), [])


def table(index: ImageIndex) -> str:
    """Return the unreadable files with their reasons, then counts by reason; `repr` keeps each name on one line."""
    bad = index.list_bad()
    width = max((len(repr(path)) for path, _ in bad), default=0)
    lines = [f"{path!r:<{min(width, 100)}}  {reason}" for path, reason in bad]
    kinds = Counter(reason.partition(":")[0] if reason[:1].isalpha() else "size differs or too large" for _, reason in bad)
    lines += [f"{count:>8}  {kind}" for kind, count in kinds.most_common()] if bad else []
    return "\n".join([*lines, f"{index.source}: {len(index):,} images, {len(bad)} of them cannot be read"])
