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

from ijepa_ds import config
from ijepa_ds.arguments import check_at_least
from ijepa_ds.data.headers import READ_ERRORS
from ijepa_ds.data.index import ImageIndex, describe
from ijepa_ds.data.index_command import add_scan_arguments, scan_options, summary
from ijepa_ds.data.index_file import BY_PILLOW
from ijepa_ds.data.judge import Judge, Judgement
from ijepa_ds.data.pillow import reason
from ijepa_ds.data.reading import Reader
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.errors import UserError
from ijepa_ds.examples import shipped
from ijepa_ds.terminal import Bar

logger = logging.getLogger(__name__)
_WINDOW = 256  # images in flight


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data check`."""
    add_scan_arguments(parser)
    text = "read images as this run does: its data keys, channels and ranges too, instead of the options above"
    parser.add_argument("--config", metavar="FILE", type=shipped, help=text)
    parser.add_argument("--fix-index", type=Path, metavar="INDEX", help="write an index of the good images")
    parser.add_argument("--strict", action="store_true", help="also name JPEGs with junk bytes that no pixel needs")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="decoding threads (default: all cores)")


def run(args: argparse.Namespace) -> int:
    """Check the images and print the table; return 0 if all are readable or an index was written, else 1."""
    check_at_least(args, threads=1)
    options = scan_options(args)
    if args.config:
        options = ScanOptions.of(config.load(args.config, []).data, progress=True)
    index = open_source(args.source, options)
    judge = Judge(options.max_pixels, strict=args.strict, with_dali=args.fix_index is not None, values=options.values)
    found = check(index, judge, args.threads)
    index = index.with_bad({position: judgement.reason for position, judgement in found.items() if judgement.reason})
    by_pillow = {position: judgement.dali for position, judgement in found.items() if judgement.dali}
    logger.info("%s", table(index))
    if by_pillow:
        listed = describe([(index.display_path(at), text) for at, text in sorted(by_pillow.items())])
        logger.info("%d images are decoded by Pillow also in the DALI loader: %s", len(by_pillow), listed)
    if args.fix_index:
        if len(index.bad) == len(index):
            raise UserError(f"{args.source}: no readable image is left, no index written")
        fixed = index.by_pillow(list(by_pillow)).without_bad()
        fixed.save(args.fix_index)
        logger.info("%s in %s", summary(fixed), args.fix_index)
    return 0 if args.fix_index or not index.list_bad() else 1


def check(index: ImageIndex, judge: Judge, threads: int) -> dict[int, Judgement]:
    """Decode every image not yet marked as unreadable.

    Args:
        index: The images.
        judge: Judges the bytes of each.
        threads: Decoding threads.

    Returns:
        Position -> judgement of every image that is unreadable or that DALI decodes differently.
    """
    reader = Reader(index)

    def look(position: int) -> Judgement:
        try:
            return judge.judge(reader.read(position), bool(index.entries["format"][position] & BY_PILLOW))
        except READ_ERRORS as error:
            return Judgement(reason(error))

    positions = (position for position in range(len(index)) if position not in index.bad)
    bar = Bar(f"check {index.source}", len(index) - len(index.bad), "images")
    found = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="check") as pool, bar:
        for window in _windows(positions):
            for position, judgement in zip(window, pool.map(look, window), strict=True):
                bar.update()
                if any(judgement):
                    found[position] = judgement
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
