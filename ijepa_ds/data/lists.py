"""Lists of images: plain text with a path a line, or tables with the columns `path` and `label`.

A list is read exactly or refused with the line and the reason: no name is changed without a file that confirms it.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ijepa_ds.data.classes import LONGEST, SIDECAR, class_of, class_text, sidecar_of
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import Container
from ijepa_ds.data.list_text import BLANKS, check_utf8, is_utf8, label_on_line, plain_lines, text_of
from ijepa_ds.data.repeats import Row, check_repeats
from ijepa_ds.data.scan import Candidate, ScanOptions, scan
from ijepa_ds.data.walk import is_image
from ijepa_ds.errors import UserError, is_fault

logger = logging.getLogger(__name__)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".txt", *DELIMITERS)


def scan_list(path: str, source: str, options: ScanOptions) -> ImageIndex:
    """Index the images of a list; its paths are relative to its folder.

    Raises:
        ValueError: Names the line that cannot be used, and why.
    """
    where = f"data.source: {source!r}"
    folder, ending = os.fsencode(os.path.dirname(os.path.abspath(path))), os.path.splitext(path)[1].lower()
    content = text_of(path, where)

    def rows() -> Iterator[Row]:
        return _plain(content, where, folder) if ending == ".txt" else _table(content, where, DELIMITERS[ending], folder)

    check_repeats(rows, where, folder)
    beside, by_folder = _Sidecars(folder), False

    def candidates() -> Iterator[Candidate]:
        nonlocal by_folder
        for _, name, label in rows():
            if label is None:  # the list has no column of labels; an empty label is an image without a class
                label, by_folder = beside.class_of(name, options.class_level), True
            yield Candidate(0, name, label or None)

    index = scan(source, [Container(os.fsdecode(folder))], candidates(), options)
    if by_folder and index.classes:
        logger.info(
            "%s has no labels: an image's class is its folder below %r, where the list lies", where, os.fsdecode(folder)
        )
    return index


def _plain(content: bytes, where: str, folder: bytes) -> Iterator[Row]:
    for number, line in plain_lines(content):
        name = _confirmed(line, folder)
        bare = name == line and not _exists(folder, name)  # a name as it stands, without a file
        if bare:
            check_utf8(line, f"{where}, line {number}")
        if bare and not is_image(name, arrays=True):
            what = "looks like `path label`" if label_on_line(name) else "is no image's name, and no such file exists"
            raise UserError(f"{where}, line {number}: {os.fsdecode(line)!r} {what}; {_USE_TABLE}")
        if bare and b" " in name.strip() and label_on_line(name) and _exists(folder, name.strip().split(None, 1)[1]):
            raise UserError(f"{where}, line {number}: {os.fsdecode(line)!r} looks like `label path`; {_USE_TABLE}")
        yield Row(number, name, None)


_USE_TABLE = "a .txt list has one path a line; labels and headers need a .csv with the first line `path,label`"


def _table(content: bytes, where: str, delimiter: str, folder: bytes) -> Iterator[Row]:
    text = content.decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    line = 1  # where the next row begins
    try:
        columns = [name.strip().casefold() for name in next(reader, [])]
        _check_columns(columns, where, delimiter)
        path_at, label_at = columns.index("path"), columns.index("label") if "label" in columns else None
        line = reader.line_num + 1
        for values in reader:
            start, line = line, reader.line_num + 1
            at = f"{where}, line {start}"
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(columns):
                raise UserError(
                    f"{at}: {len(values)} values, but {len(columns)} columns ({', '.join(columns)}); "
                    f'a value that contains {delimiter!r} stands in "quotes"'
                )
            if not values[path_at].strip():
                raise UserError(f"{at}: no path")
            label = None if label_at is None else os.fsencode(values[label_at].strip())
            if label and b"\n" in label:
                raise UserError(f"{at}: the label has a line break: is the quote that opens in this line closed?")
            if label and (len(label) > LONGEST or any(byte < 32 for byte in label)):
                raise UserError(f"{at}: the label {label[:40]!r} is no line of text of at most {LONGEST} bytes")
            if label:
                check_utf8(label, at)
            name = _confirmed(os.fsencode(values[path_at]), folder)
            if not is_utf8(name) and not _exists(folder, name):
                check_utf8(name, at)
            if b"\n" in name and not _exists(folder, name):
                raise UserError(f"{at}: the quote that opens here closes in line {reader.line_num}, and no such file exists")
            yield Row(start, name, label)
    except csv.Error as error:
        what = f"{error} in line {reader.line_num}" if reader.line_num > line else str(error)
        opened = ": is a quote that opens in this line not closed?" if reader.line_num > line or "end of data" in what else ""
        raise UserError(f"{where}, line {line}: {what}{opened}") from error


def _check_columns(columns: list[str], where: str, delimiter: str) -> None:
    found = delimiter.join(columns)
    if "path" not in columns:
        raise UserError(
            f"{where}, line 1: the first line must name the columns, 'path' and optionally 'label', separated by "
            f"{delimiter!r}; found {found!r}"
        )
    if len(set(columns)) < len(columns):
        raise UserError(f"{where}, line 1: a column occurs twice in {found!r}")
    if len(columns) > 1 and "label" not in columns:
        raise UserError(
            f"{where}, line 1: no column 'label' among {found!r}; rename the column of the classes to 'label', or leave only "
            "'path' if the list has no classes"
        )


def _confirmed(name: bytes, folder: bytes) -> bytes:
    """Return the name of the file that a value means: as it stands, without blanks around it, or with `/` for a backslash."""
    if name == name.strip(BLANKS) and b"\\" not in name:
        return name
    choices = [name, name.strip(BLANKS), name.strip(BLANKS).replace(b"\\", b"/")]
    return next((choice for choice in choices if _exists(folder, choice)), choices[-1])


def _exists(folder: bytes, name: bytes) -> bool:
    return os.path.lexists(os.path.join(folder, name))


class _Sidecars:
    """The `.cls` files in the folders of a list's images; each folder is listed once."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._known: dict[bytes, dict[bytes, bytes]] = {}

    def class_of(self, name: bytes, level: int | None) -> bytes | None:
        """Return an image's class by the rule of `classes`."""
        folder = os.path.dirname(name)
        if folder not in self._known:
            self._known[folder] = self._read(folder)
        beside = sidecar_of(os.path.basename(name), self._known[folder])
        if beside is not None:
            path = os.path.join(self._root, folder, beside)
            return class_text(Path(os.fsdecode(path)).read_bytes(), os.fsdecode(path))
        inside = os.path.relpath(name, self._root) if name.startswith(b"/") else os.path.normpath(name)
        return class_of(inside, level)

    def _read(self, folder: bytes) -> dict[bytes, bytes]:
        try:
            names = os.listdir(os.path.join(self._root, folder))
        except OSError as error:
            if is_fault(error):
                raise
            return {}  # the scan names its images
        return {name.removesuffix(SIDECAR): name for name in names if name.endswith(SIDECAR)}
