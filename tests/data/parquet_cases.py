"""Makers of parquet files for tests, as Hugging Face `datasets` and others write them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def features(**columns: Mapping[str, object]) -> dict[bytes, bytes]:
    """Hugging Face's metadata of a schema: column -> feature."""
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


def write(
    path: Path,
    contents: Sequence[bytes | None],
    *,
    names: Sequence[str | None] | None = None,
    labels: Sequence[object] | None = None,
    classes: Sequence[str] | None = None,
    group: int = 4,
    compression: str = "snappy",
) -> Path:
    """Write images as Hugging Face does: struct<bytes, path>, and a ClassLabel if there are `classes`."""
    names = names if names is not None else [None] * len(contents)
    columns: dict[str, object] = {"image": [{"bytes": c, "path": n} for c, n in zip(contents, names, strict=True)]}
    described: dict[str, Mapping[str, object]] = {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = list(labels)
        if classes is not None:
            described["label"] = {"names": list(classes), "_type": "ClassLabel"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    arrays = {name: pa.array(values, kind if name == "image" else None) for name, values in columns.items()}
    table = pa.table(arrays).replace_schema_metadata(features(**described))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=group, compression=compression)
    return path
