"""Conversions between folders, tars and parquet: the same bytes, names, classes and samples, also after an interruption."""

from __future__ import annotations

import json
import os
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ijepa_ds.cli import main
from ijepa_ds.config import DataConfig
from ijepa_ds.data import open_source, parquet_shards
from ijepa_ds.data.shards import write_shards
from tests.cases.making import coded, listing, photo, write_tree
from tests.data.parquet_cases import write
from tests.data.test_parquet import batches, pictures

SIZE = 20_000


def shard(source, out, *options: str) -> None:
    assert main(["data", "shard", str(source), "--out", str(out), *options]) == 0


def test_folder_to_parquet_to_tar_keeps_bytes_names_classes_and_samples(tmp_path):
    files = pictures()
    write_tree(tmp_path / "folder", files)
    shard(tmp_path / "folder", tmp_path / "parquet", "--to", "parquet", "--rows", "3", "--size", "20K")
    shard(tmp_path / "parquet", tmp_path / "tar", "--to", "tar")
    shard(tmp_path / "tar", tmp_path / "back", "--to", "parquet", "--rows", "5")
    written = sorted((tmp_path / "parquet").glob("*.parquet"))
    assert len(written) > 1
    folder = open_source(str(tmp_path / "folder"))
    others = [open_source(str(tmp_path / name)) for name in ("parquet", "tar", "back", "parquet/*.parquet", "back/*.parquet")]
    cfg = DataConfig(source="", crop_size=24, loader="torchvision")
    expected = batches(folder, cfg)
    for index in others:
        assert listing(index) == listing(folder) and index.checksum == folder.checksum
        assert torch.equal(batches(index, cfg), expected)
    made, scanned = others[0], others[3]  # through the index, and through the files
    assert [c.plain() for c in made.containers] == [c.plain() for c in scanned.containers]
    assert np.array_equal(made.entries["offset"], scanned.entries["offset"])


def test_the_files_are_what_hugging_face_writes(tmp_path):
    files = pictures(6)
    write_shards(open_source(str(write_tree(tmp_path / "folder", files))), tmp_path / "out", 1 << 20, to="parquet", rows=4)
    file = pq.ParquetFile(tmp_path / "out" / "images-00000.parquet")
    features = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [4, 2]
    rows = file.read().to_pylist()
    assert {row["image"]["path"]: row["image"]["bytes"] for row in rows} == files
    assert [features["label"]["names"][row["label"]] for row in rows] == [name.split("/")[0] for name in files]


def test_rows_without_names_get_an_ending_in_a_tar(tmp_path):
    contents = [coded(photo(0)), coded(photo(1), "PNG")]
    index = open_source(str(write(tmp_path / "a.parquet", contents)))
    made = write_shards(index, tmp_path / "out", SIZE)
    assert made.checksum == index.checksum
    with tarfile.open(tmp_path / "out" / "images-00000.tar") as tar:
        assert tar.getnames() == ["00000000.jpg", "00000001.png"]
    assert [content for _, content in listing(open_source(str(tmp_path / "out" / "*.tar"))).values()] == contents


def test_an_interrupted_conversion_goes_on_and_gives_the_same_files(tmp_path, monkeypatch):
    source = open_source(str(write_tree(tmp_path / "folder", pictures())))
    write_shards(source, tmp_path / "one", SIZE, to="parquet", rows=3)
    original, written = parquet_shards.write, []

    def stop_at_the_second(reader, index, path, positions, rows):
        written.append(path.name)
        if len(written) == 2:
            (path.parent / f".{path.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        return original(reader, index, path, positions, rows)

    monkeypatch.setattr(parquet_shards, "write", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, tmp_path / "two", SIZE, to="parquet", rows=3)
    with pytest.raises(ValueError, match="another source, --size, --to or --rows"):
        write_shards(source, tmp_path / "two", SIZE, to="parquet", rows=4)
    first = tmp_path / "two" / "images-00000.parquet"
    first.write_bytes(first.read_bytes()[:-100])  # damaged in between: written again
    write_shards(source, tmp_path / "two", SIZE, to="parquet", rows=3)
    names = sorted(os.listdir(tmp_path / "one"))
    assert written.count("images-00000.parquet") == 2 and names == sorted(os.listdir(tmp_path / "two"))
    for name in names:
        if name.endswith(".parquet"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_shard_that_reads_back_differently_stops_the_conversion(tmp_path, monkeypatch):
    source = open_source(str(write_tree(tmp_path / "folder", pictures(4))))
    monkeypatch.setattr(parquet_shards, "sums", lambda path: ("", []))
    with pytest.raises(ValueError, match="reads back differently"):
        write_shards(source, tmp_path / "out", SIZE, to="parquet")
