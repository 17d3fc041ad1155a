"""Lists of images: plain text with a path a line, or tables with the columns `path` and `label`.

A list is read exactly or refused with the line and the reason: no name is changed without a file that confirms it.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from ijepa_ds.data.classes import SIDECAR, class_of, class_text, sidecar_of
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import Container
from ijepa_ds.data.scan import Candidate, ScanOptions, scan
from ijepa_ds.data.walk import is_image
from ijepa_ds.errors import UserError, is_fault

DELIMITERS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (".txt", *DELIMITERS)
_BLANKS = b" \t\xc2\xa0"
_OTHER_ENCODINGS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def scan_list(path: str, source: str, options: ScanOptions) -> ImageIndex:
    """Index the images of a list; its paths are relative to its folder.

    Raises:
        ValueError: Names the line that cannot be used, and why.
    """
    where = f"data.source: {source!r}"
    folder, ending = os.fsencode(os.path.dirname(os.path.abspath(path))), os.path.splitext(path)[1].lower()
    content = text_of(path, where)
    rows = _plain(content, where, folder) if ending == ".txt" else _table(content, where, DELIMITERS[ending], folder)
    beside = _Sidecars(folder)

    def candidates() -> Iterator[Candidate]:
        for name, label in rows:
            if label is None:  # the list has no column of labels; an empty label is an image without a class
                label = beside.class_of(name, options.class_level)
            yield Candidate(0, name, label or None)

    return scan(source, [Container(os.fsdecode(folder))], candidates(), options)


def text_of(path: str | Path, where: str) -> bytes:
    """Return the bytes of a text file without a UTF-8 byte-order mark.

    Args:
        path: The file.
        where: Its name in messages.

    Raises:
        ValueError: It is UTF-16 or UTF-32, or has zero bytes.
    """
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _OTHER_ENCODINGS.items() if content.startswith(mark)), "")
    if not encoding and b"\0" in content:
        encoding = "UTF-16LE" if content[1:2] == b"\0" else "UTF-16BE"
    if encoding:
        command = f"iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > list.utf8{Path(path).suffix}"
        raise UserError(f"{where} is {encoding} text, expected UTF-8: `{command}`")
    content = content.removeprefix(b"\xef\xbb\xbf")
    if b"\r" in content and b"\n" not in content:
        raise UserError(f"{where} has lines that end in CR alone: `tr '\\r' '\\n' < {shlex.quote(str(path))} > list.lf.txt`")
    return content


def plain_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of every line that is not blank, without its line break."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip(_BLANKS + b"\r"):
            yield number, line.removesuffix(b"\r")


def label_on_line(line: bytes) -> bool:
    """Return whether a line looks like `path label` or `label path`."""
    after = re.fullmatch(rb"(.*\.\w{2,5})[ \t,;|]+\S.*", line.strip())
    before = re.fullmatch(rb"\S+[ \t,;|]+(\S.*)", line.strip())
    return bool(after and is_image(after[1]) and not is_image(line.strip())) or bool(before and is_image(before[1]))


def _plain(content: bytes, where: str, folder: bytes) -> Iterator[tuple[bytes, None]]:
    for number, line in plain_lines(content):
        name = _confirmed(line, folder)
        bare = name == line and not _exists(folder, name)  # a name as it stands, without a file
        if bare and not is_image(name):
            what = "looks like `path label`" if label_on_line(name) else "is no image's name, and no such file exists"
            raise UserError(f"{where}, line {number}: {os.fsdecode(line)!r} {what}; {_USE_TABLE}")
        if bare and b" " in name.strip() and label_on_line(name) and _exists(folder, name.strip().split(None, 1)[1]):
            raise UserError(f"{where}, line {number}: {os.fsdecode(line)!r} looks like `label path`; {_USE_TABLE}")
        yield name, None


_USE_TABLE = "a .txt list has one path a line; labels and headers need a .csv with the first line `path,label`"


def _table(content: bytes, where: str, delimiter: str, folder: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    text = content.decode("utf-8", "surrogateescape")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        columns = [name.strip().casefold() for name in next(reader, [])]
        _check_columns(columns, where, delimiter)
        path_at, label_at = columns.index("path"), columns.index("label") if "label" in columns else None
        for row in reader:
            if not any(value.strip() for value in row):
                continue
            if len(row) != len(columns):
                raise UserError(
                    f"{where}, line {reader.line_num}: {len(row)} values, but {len(columns)} columns ({', '.join(columns)}); "
                    f'a value that contains {delimiter!r} stands in "quotes"'
                )
            if not row[path_at].strip():
                raise UserError(f"{where}, line {reader.line_num}: no path")
            label = None if label_at is None else os.fsencode(row[label_at].strip())
            yield _confirmed(os.fsencode(row[path_at]), folder), label
    except csv.Error as error:
        raise UserError(f"{where}, line {reader.line_num}: {error}") from error


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
    if name == name.strip(_BLANKS) and b"\\" not in name:
        return name
    choices = [name, name.strip(_BLANKS), name.strip(_BLANKS).replace(b"\\", b"/")]
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
