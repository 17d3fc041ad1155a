"""Images that a list names more than once."""

from __future__ import annotations

import logging
import os
from array import array
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)
_SHOWN = 3  # images in a message


class Row(NamedTuple):
    """A row of a list: its first line in the file, the image's path, and its label; None: the list has no labels."""

    line: int
    name: bytes
    label: bytes | None


def check_repeats(rows: Callable[[], Iterable[Row]], where: str, folder: bytes) -> None:
    """Refuse an image with two labels, and report the number of rows that repeat one.

    Every row counts as an image of its own, so a repeated image is seen more often. The check takes 24 bytes a row.

    Args:
        rows: Returns all rows, each time from the first.
        where: The list, for messages.
        folder: Paths are relative to it.

    Raises:
        ValueError: Rows give one image different labels; the text has the lines.
    """
    images, labels, lines = array("q"), array("q"), array("q")
    for line, name, label in rows():
        images.append(hash(_plain_path(folder, name)))
        labels.append(hash(label))
        lines.append(line)
    order = np.argsort(images, kind="stable")
    sorted_images, sorted_labels = np.asarray(images)[order], np.asarray(labels)[order]
    same = np.flatnonzero(sorted_images[1:] == sorted_images[:-1])
    if not len(same):
        return
    found = {int(lines[int(order[k])]) for at in same.tolist() for k in (at, at + 1)}
    contents = {row.line: row for row in rows() if row.line in found}
    pairs = [(contents[lines[int(order[at])]], contents[lines[int(order[at + 1])]]) for at in same.tolist()]
    different = [pair for pair, at in zip(pairs, same.tolist(), strict=True) if sorted_labels[at] != sorted_labels[at + 1]]
    if different:
        listed = "; ".join(
            f"{os.fsdecode(one.name)!r} has {_shown(one.label)} in line {one.line} and {_shown(two.label)} in line {two.line}"
            for one, two in different[:_SHOWN]
        )
        more = f"; and {len(different) - _SHOWN:,} more" if len(different) > _SHOWN else ""
        raise UserError(f"{where}: {len(different):,} images have several labels: {listed}{more}; an image has one class")
    first, second = min(pairs, key=lambda pair: pair[1].line)
    logger.warning(
        "%s: %s rows repeat an image, such as %r in the lines %d and %d; each row counts, so it is seen more often",
        *(where, f"{len(pairs):,}", os.fsdecode(first.name), first.line, second.line),
    )


def _plain_path(folder: bytes, name: bytes) -> bytes:
    return os.path.normpath(os.path.join(folder, name))


def _shown(label: bytes | None) -> str:
    return repr(os.fsdecode(label)) if label else "none"
