"""`ijepa-ds data objects`: demo images with one large solid each, as class folders and `scenes.json`."""

from __future__ import annotations

import argparse

from ijepa_ds.scenes import command, objects

run = command.run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    command.add_common(parser)
    parser.add_argument(
        "--classes", choices=tuple(objects.CLASSES), default="shape", help="what the class folders are (default shape)"
    )
