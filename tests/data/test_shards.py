"""Shards: the same bytes as the source, the same each time, whole after an interruption, found broken when they are."""

import hashlib
import io
import os
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds.cli import main
from ijepa_ds.config import DataConfig
from ijepa_ds.data import shards
from ijepa_ds.data.index import build_index
from ijepa_ds.data.index_file import ENTRY, Container, Part
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.reading import Reader
from ijepa_ds.data.shards import write_shards
from ijepa_ds.data.sources import open_source

SIZE = 40_000
COUNT = 30


@pytest.fixture
def root(tmp_path):
    for i in range(COUNT):
        name = ["plain", "with blank", "line\nbreak", "größe", "x" * 120][i % 5]
        path = tmp_path / "images" / f"{i % 3}" / "deep" / f"{name}{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (60, 50 + i, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
    return tmp_path / "images"


def tree(folder) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != ".lock"}


def test_shards_hold_the_source_and_a_run_may_go_on_with_them(tmp_path, root):
    source = open_source(str(root))
    assert main(["data", "shard", str(root), "--out", str(tmp_path / "out"), "--size", "40K"]) == 0
    made = open_source(str(tmp_path / "out"))
    assert len(made.containers) > 2 and all(os.path.getsize(c.path) <= 40 * 1024 + 10240 for c in made.containers)
    assert made.checksum == source.checksum and made.classes == source.classes
    assert np.array_equal(made.labels, source.labels) and np.array_equal(made.sizes, source.sizes)
    reader, original = Reader(made), Reader(source)
    assert all(reader.read(i) == original.read(i) for i in range(COUNT))
    batches = []
    for index in (source, made):
        cfg = DataConfig(source=index.source, crop_size=24)
        stream = ImageBatches(
            cfg, index, seed=0, batch_size=8, micro_batch=8, rank=0, world_size=1, accumulation=1, start_step=0, device="cpu"
        )
        batches.append(torch.stack([next(stream) for _ in range(4)]))
        stream.close()
    assert torch.equal(*batches)


def test_any_tar_reads_them(tmp_path, root):
    write_shards(open_source(str(root)), tmp_path / "out", SIZE)
    names = {}
    for path in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(path) as tar:
            names |= {member.name: tar.extractfile(member).read() for member in tar}
    assert names == {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.jpg")}


def test_two_writings_are_equal_and_an_interrupted_one_goes_on(tmp_path, root, monkeypatch):
    source = open_source(str(root))
    write_shards(source, tmp_path / "one", SIZE)
    original, written = shards._write_shard, []

    def stop_at_the_third(reader, index, path, positions):
        written.append(path.name)
        if len(written) == 3:
            (path.parent / f".{path.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        return original(reader, index, path, positions)

    monkeypatch.setattr(shards, "_write_shard", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_shards(source, tmp_path / "two", SIZE)
    assert not (tmp_path / "two" / "images.index").exists()
    with pytest.raises(ValueError, match="another source, --size"):
        write_shards(source, tmp_path / "two", SIZE * 2)
    first = tmp_path / "two" / "images-00000.tar"
    first.write_bytes(first.read_bytes()[:-20000] + bytes(20000))  # the crash lost pages of one that counted as whole
    write_shards(source, tmp_path / "two", SIZE)
    assert written[3:5] == ["images-00000.tar", "images-00002.tar"]  # 00001 was kept
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    with pytest.raises(ValueError, match="holds finished shards"):
        write_shards(source, tmp_path / "two", SIZE)


def test_a_plan_takes_few_bytes_an_image():
    count = 3_000
    entries, names = np.zeros(count, ENTRY), [f"class{i % 7}/{i:08d}.jpg".encode() for i in range(count)]
    entries["name_length"] = [len(name) for name in names]
    entries["name"] = np.cumsum(entries["name_length"]) - entries["name_length"]
    entries["num_bytes"] = 100_000
    index = build_index(
        source="x", entries=entries, names=np.frombuffer(b"".join(names), np.uint8), containers=(Container("x"),), classes=(),
        bad={3: "cut"}, problems=(), parts=(Part("x", count, None),),
    )  # fmt: skip
    tracemalloc.start()
    planned = shards.plan(index, 512 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(planned.positions) == count - 1 and len(planned.firsts) == 2
    assert peak / count < 250  # with one piece of the index and the interpreter's own objects


def test_what_does_not_read_back_is_not_kept(tmp_path, root, monkeypatch):
    monkeypatch.setattr(shards, "_sums", lambda *_: ("other", []))
    with pytest.raises(ValueError, match="reads back differently"):
        write_shards(open_source(str(root)), tmp_path / "out", SIZE)
    assert not (tmp_path / "out" / "images.index").exists()


def test_unreadable_ones_are_left_out_and_vanished_ones_stop(tmp_path, root):
    (root / "0" / "a.jpg").write_text("no image")
    source = open_source(str(root))
    made = write_shards(source, tmp_path / "out", SIZE)
    assert len(made) == COUNT and len(source) == COUNT + 1
    os.remove(source.path(int(source.readable()[4])))
    with pytest.raises(ValueError, match="is no longer readable.*--fix-index"):
        write_shards(source, tmp_path / "other", SIZE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ValueError, match="is not empty"):
        write_shards(source, tmp_path / "full", SIZE)


def test_absolute_names_stay_inside_the_tar(tmp_path, root):
    (tmp_path / "list.txt").write_text("\n".join(str(p) for p in sorted(root.rglob("*plain*.jpg"))))
    made = write_shards(open_source(str(tmp_path / "list.txt")), tmp_path / "out", SIZE)
    with tarfile.open(made.containers[0].path) as tar:
        assert all(not name.startswith("/") for name in tar.getnames())
    assert io.BytesIO(Reader(made).read(0)).getvalue() == next(iter(sorted(root.rglob("*plain*.jpg")))).read_bytes()
