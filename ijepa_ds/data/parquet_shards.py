"""Parquet shards of a source: images and classes as Hugging Face `datasets` writes them.

Images are not compressed again, and every page has a checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import Container
from ijepa_ds.data.parquet_columns import LABEL, METADATA, PATH
from ijepa_ds.data.reading import Reader, digest
from ijepa_ds.data.row_groups import BYTES, Rows, open_parquet
from ijepa_ds.data.shard_plan import Plan, contents
from ijepa_ds.data.tars import fingerprint

IMAGE = "image"
_ROWS = 1 << 14  # of the index, read at once
_BLOCK = 1 << 22  # bytes of a file, read at once


def plan(index: ImageIndex, size: int, rows: int) -> Plan:
    """Assign the readable images to files of at most `size` bytes of images, and row groups of at most `rows` rows."""
    positions = index.readable()
    containers, offsets = np.empty(len(positions), np.int32), np.empty(len(positions), np.int64)
    firsts: list[int] = []
    bytes_, group, row = 0, -1, rows
    for first in range(0, len(positions), _ROWS):
        lengths = index.rows(positions[first : first + _ROWS])["num_bytes"].tolist()
        for at, num_bytes in enumerate(lengths, start=first):
            if not firsts or bytes_ + num_bytes > size:
                firsts.append(at)
                bytes_, row = 0, rows
            if row == rows:
                group, row = group + 1, 0
            containers[at], offsets[at] = group, row
            bytes_, row = bytes_ + num_bytes, row + 1
    return Plan(positions, containers, offsets, np.array([*firsts, len(positions)]))


def write(reader: Reader, index: ImageIndex, path: Path, positions: np.ndarray, rows: int) -> tuple[list[int], str]:
    """Write one file aside and rename it; return the checksum of each image, and the digest of the file."""
    partial, checksums = path.with_name(f".{path.name}.partial"), []
    schema = schema_of(index)
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True, "write_statistics": False}
    with open(partial, "wb") as file:
        with pq.ParquetWriter(file, schema, **options) as writer:
            images = contents(reader, positions.tolist())
            while group := list(islice(images, rows)):
                checksums += [digest(content) for _, content in group]
                writer.write_table(_table(index, group, schema), row_group_size=rows)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return checksums, _digest(path)


def schema_of(index: ImageIndex) -> pa.Schema:
    """The columns of a source: `image`, and `label` if it has classes, with Hugging Face's metadata."""
    features: dict[str, dict[str, object]] = {IMAGE: {"_type": "Image"}}
    fields = [pa.field(IMAGE, pa.struct([(BYTES, pa.binary()), (PATH, pa.string())]))]
    if index.classes:
        features[LABEL] = {"names": list(index.classes), "_type": "ClassLabel"}
        fields.append(pa.field(LABEL, pa.int64()))
    return pa.schema(fields, {METADATA: json.dumps({"info": {"features": features}}).encode()})


def _table(index: ImageIndex, group: list[tuple[int, bytes]], schema: pa.Schema) -> pa.Table:
    # A name that is no UTF-8 is written with escapes; the index keeps its bytes.
    names = [index.name(position).decode("utf-8", "backslashreplace") for position, _ in group]
    images = [{BYTES: content, PATH: name} for (_, content), name in zip(group, names, strict=True)]
    columns = [pa.array(images, schema.field(IMAGE).type)]
    if index.classes:
        columns.append(pa.array(index.rows([position for position, _ in group])["label"].astype(np.int64)))
    return pa.table(columns, schema=schema)


def sums(path: Path) -> tuple[str, list[int]]:
    """Read a file and return its digest, and the checksum of each of its images.

    Raises:
        ContentError: The file is damaged.
    """
    file = open_parquet(str(path))
    checksums: list[int] = []
    for group in range(file.num_row_groups):
        read = Rows(file, Container(str(path), column=IMAGE, group=group))
        checksums += [digest(read.read(row)) for row in range(len(read))]
    return _digest(path), checksums


def _digest(path: Path) -> str:
    whole = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            whole.update(block)
    return whole.hexdigest()


def containers_of(planned: Plan, paths: list[Path]) -> list[Container]:
    """The row groups of all files, in order."""
    found = []
    for shard, path in enumerate(paths):
        mark, members = fingerprint(str(path)), planned.members(shard)
        starts = np.unique(planned.containers[members], return_index=True)[1]
        found += [Container(str(path), mark, IMAGE, group, row) for group, row in enumerate(starts.tolist())]
    return found
