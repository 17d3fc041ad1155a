"""Parquet files as a source: their row groups, and the names and classes of their rows."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ijepa_ds.data.classes import class_of, class_text
from ijepa_ds.data.index import ImageIndex, describe
from ijepa_ds.data.index_file import Container
from ijepa_ds.data.parquet_columns import PATH, Columns, find_columns
from ijepa_ds.data.row_groups import arrow_errors, open_parquet
from ijepa_ds.data.scan import Candidate, ScanOptions, scan
from ijepa_ds.data.tars import fingerprint
from ijepa_ds.errors import ContentError, UserError

logger = logging.getLogger(__name__)
_SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})(?:-[0-9a-f]+)?\.parquet")  # how Hugging Face names the files of a split


@dataclass(frozen=True)
class _File:
    """A parquet file whose columns are known."""

    path: str
    fingerprint: str
    columns: Columns
    groups: int


def scan_parquet(paths: list[str], source: str, options: ScanOptions) -> ImageIndex:
    """Index the images of parquet files, in the order of `paths` and their rows; `source` is the name in messages.

    Raises:
        UserError: Files are damaged or cut short, have no column of images, or a label that is no class.
    """
    check_splits(paths, source)
    files = _open_all(paths, source, options)
    containers: list[Container] = []
    unlabelled: list[str] = []

    def candidates() -> Iterator[Candidate]:
        for file in files:
            opened = options.storage().call(lambda path=file.path: open_parquet(path), repr(file.path))  # type: ignore[misc]
            first = 0
            for group in range(file.groups):
                options.beat()
                containers.append(Container(os.path.abspath(file.path), file.fingerprint, file.columns.image, group, first))
                for row, (name, label) in enumerate(_rows(opened, file, group, first, options)):
                    if file.columns.label and label is None:
                        unlabelled.append(f"{file.path}:row {first + row}")
                    yield Candidate(len(containers) - 1, name, label, row)
                first += opened.metadata.row_group(group).num_rows

    index = scan(
        source, containers, candidates(), options, lambda: len(containers) / max(1, sum(file.groups for file in files))
    )
    if unlabelled:
        logger.warning(
            "data.source %r: %d rows have no class (the label is -1, as for hidden test labels, or empty), the first is %s",
            *(source, len(unlabelled), unlabelled[0]),
        )
    return index


def _open_all(paths: list[str], source: str, options: ScanOptions) -> list[_File]:
    """Read the footers of all files, and name every file that cannot be used."""
    files, problems = [], []
    storage = options.storage()

    def look(path: str) -> _File:
        file = open_parquet(path)
        columns = find_columns(file.schema_arrow, repr(path), options.image_column, options.label_column)
        return _File(path, fingerprint(path), columns, file.num_row_groups)

    for path in paths:
        options.beat()
        try:
            files.append(storage.call(lambda path=path: look(path), repr(path)))  # type: ignore[misc]
        except ContentError as error:
            problems.append((path, f"damaged or cut short: {error}"))
    if problems:
        raise UserError(
            f"data.source: {source!r}: {len(problems)} of {len(paths)} parquet files cannot be read: {describe(problems)}; "
            "copy them again"
        )
    kinds = Counter(file.columns for file in files)
    if len(kinds) > 1:
        (usual, _), *_ = kinds.most_common()
        other = next(file for file in files if file.columns != usual)
        raise UserError(
            f"data.source: {source!r}: {other.path!r} has other columns ({other.columns.image}, "
            f"{other.columns.label or 'no label'}) or other classes than most files ({usual.image}, "
            f"{usual.label or 'no label'}): give each kind as a source of its own in a mix"
        )
    return files


def _rows(
    opened: pq.ParquetFile, file: _File, group: int, first: int, options: ScanOptions
) -> Iterator[tuple[bytes, bytes | None]]:
    """Yield name and class of the rows of a group; the images themselves are not read."""
    columns, where = file.columns, f"{file.path!r}, row group {group}"
    leaves = [leaf for leaf in (columns.path, columns.label) if leaf]
    count = opened.metadata.row_group(group).num_rows

    def read() -> pa.Table:
        with arrow_errors():
            return opened.read_row_group(group, columns=leaves, use_threads=False)

    try:
        table = options.storage().call(read, where)
    except ContentError as error:
        raise UserError(f"data.source: {where} is damaged: {error}; copy the file again") from error
    structs = table.column(columns.image).to_pylist() if columns.path else [None] * count
    labels = table.column(columns.label).to_pylist() if columns.label else [None] * count
    for row, (struct, value) in enumerate(zip(structs, labels, strict=True)):
        path = (struct or {}).get(PATH)
        name = os.fsencode(path) if path else b"%08d" % (first + row)
        if not columns.label:
            yield name, class_of(name, options.class_level)
            continue
        try:
            label = columns.class_of(value)
        except ValueError as error:
            raise UserError(f"data.source: {file.path!r}, row {first + row}, column {columns.label!r}: {error}") from error
        yield name, None if label is None else class_text(os.fsencode(label), f"{file.path}, row {first + row}")


def check_splits(paths: list[str], source: str) -> None:
    """Check that files named as Hugging Face does are of one split, and all there.

    Raises:
        UserError: They belong to several splits.
    """
    named = [(os.path.dirname(path), match) for path in paths if (match := _SPLIT.fullmatch(os.path.basename(path)))]
    splits = sorted({(folder, match[1]) for folder, match in named})
    if len({split for _, split in splits}) > 1:
        choices = ", ".join(repr(os.path.join(folder, f"{split}-*.parquet")) for folder, split in splits)
        raise UserError(
            f"data.source: {source!r} has the files of several splits: give one of {choices}, or list them in a mix"
        )
    for folder, split in splits:
        counts = [int(match[2]) for place, match in named if (place, match[1]) == (folder, split)]
        if len(counts) != max(counts):
            logger.warning(
                "data.source %r: %d of the %d files %s are there: the others' images are missing",
                *(source, len(counts), max(counts), os.path.join(folder, f"{split}-*.parquet")),
            )


def check_saved_to_disk(folder: str) -> None:
    """Refuse a folder that `datasets.save_to_disk` wrote, with the command that converts it.

    Raises:
        UserError: It is such a folder.
    """
    here = os.path.abspath(folder)
    if os.path.exists(os.path.join(here, "dataset_dict.json")):
        splits = _splits(os.path.join(here, "dataset_dict.json"))
        one = os.path.join(here, splits[0] if splits else "train")
        raise UserError(
            f"data.source: {folder!r} holds the splits {', '.join(splits) or '(unknown)'} of `datasets.save_to_disk`: convert "
            f"one of them, such as {one!r}, to parquet: {_conversion('SPLIT_FOLDER')}"
        )
    if os.path.exists(os.path.join(here, "state.json")) and os.path.exists(os.path.join(here, "dataset_info.json")):
        raise UserError(
            f"data.source: {folder!r} was written by `datasets.save_to_disk` (Arrow), which is not read: convert it to "
            f"parquet: {_conversion(here)}"
        )


def _splits(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [str(name) for name in json.load(file)["splits"]]
    except (ValueError, KeyError, TypeError):  # only named in a message
        return []


def _conversion(folder: str) -> str:
    names = json.dumps(folder), json.dumps(f"{folder}.parquet")  # double quotes, as the shell's are single
    code = "import datasets; datasets.load_from_disk({}).to_parquet({})".format(*names)
    return f"`python -c {shlex.quote(code)}`"
