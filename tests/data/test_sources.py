"""Every kind of source gives the same images; an index on disk is the index in memory; changes are named."""

import io
import logging
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds.cli import main
from ijepa_ds.config import DataConfig
from ijepa_ds.data import sources
from ijepa_ds.data.image_order import mix_of
from ijepa_ds.data.index import ImageIndex, changes
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.order import MIX_BLOCK, mix_places, mixed_indices
from ijepa_ds.data.reading import Reader
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import expand, open_source

ODD = ("a/1.jpg", "a/with blank.jpg", "b/quote'\".png", "b/new\nline.jpg", "b/größe.webp")


def encoded(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 30 - seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


@pytest.fixture
def files(tmp_path) -> dict[str, bytes]:
    """Name -> bytes, also written below tmp_path/images."""
    made = {}
    for i, name in enumerate(ODD):
        kind = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[os.path.splitext(name)[1]]
        made[name] = encoded(i, kind)
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made[name])
    return made


def tar_of(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def contents(index: ImageIndex) -> dict[str, bytes]:
    reader = Reader(index)
    return {os.fsdecode(index.name(i)): reader.read(i) for i in range(len(index))}


def classes(index: ImageIndex) -> dict[str, str | None]:
    return {
        os.fsdecode(index.name(i)): index.classes[label] if label >= 0 else None
        for i, label in enumerate(index.labels.tolist())
    }


def test_folder_list_and_tar_hold_the_same_bytes(tmp_path, files):
    folder = open_source(str(tmp_path / "images"))
    tar_of(tmp_path / "x.tar", files)
    quoted = "".join('"{}",{}\n'.format(f"images/{name}".replace('"', '""'), name[0]) for name in files)
    (tmp_path / "list.csv").write_text("path,label\n" + quoted)
    plain = [name for name in files if "\n" not in name]
    (tmp_path / "list.txt").write_text("\n".join(str(tmp_path / "images" / name) for name in plain) + "\n")
    assert contents(folder) == files
    assert contents(open_source(str(tmp_path / "x.tar"))) == files
    listed = open_source(str(tmp_path / "list.csv"))
    assert contents(listed) == {f"images/{name}": content for name, content in files.items()}
    assert len(contents(open_source(str(tmp_path / "list.txt")))) == len(plain)
    assert classes(folder) == classes(open_source(str(tmp_path / "x.tar"))) == {name: name[0] for name in files}
    assert listed.classes == ("a", "b")


def test_an_index_on_disk_is_the_one_in_memory(tmp_path, files):
    (tmp_path / "images" / "bad.jpg").write_text("no image")
    made = open_source(str(tmp_path / "images"), ScanOptions(checksum=True))
    made.save(tmp_path / "the.index")
    read = open_source(str(tmp_path / "the.index"))
    assert np.array_equal(read.entries, made.entries) and read.checksum == made.checksum
    assert list(read.paths) == list(made.paths) and read.bad == made.bad and read.classes == made.classes
    assert {name: content for name, content in files.items()} == {
        os.fsdecode(read.name(i)): Reader(read).read(i) for i in read.readable()
    }
    kept = read.without_bad()
    assert len(kept) == len(files) and not kept.bad and kept.checksum != read.checksum


@pytest.mark.parametrize("cut", [10, 60, 4096 + 100])
def test_a_damaged_index_is_refused(tmp_path, files, cut):
    open_source(str(tmp_path / "images")).save(tmp_path / "the.index")
    os.truncate(tmp_path / "the.index", cut)
    with pytest.raises(ValueError, match=r"the\.index"):
        ImageIndex.open(tmp_path / "the.index")


def test_what_changed_since_the_index_is_named(tmp_path, files):
    index = tmp_path / "the.index"
    assert main(["data", "index", str(tmp_path / "images"), "--out", str(index)]) == 0
    changed = tmp_path / "images" / "a" / "1.jpg"
    changed.write_bytes(files["a/1.jpg"] + b"more")
    with pytest.raises(ValueError, match=r"changed since its index.*a/1\.jpg.*bytes, but"):
        open_source(str(index))
    changed.unlink()
    with pytest.raises(ValueError, match=r"a/1\.jpg.*No such file"):
        open_source(str(index))


def test_a_changed_tar_is_named_and_a_copied_one_is_not(tmp_path, files):
    place = tmp_path / "shards"
    place.mkdir()
    tar_of(place / "x.tar", files)
    open_source(str(place / "x.tar")).save(place / "images.index")
    shutil.copytree(place, tmp_path / "copy")
    shutil.rmtree(place)
    copied = open_source(str(tmp_path / "copy"))  # the index beside the shards, moved with them
    assert contents(copied) == files and copied.paths[0].startswith(str(tmp_path / "copy" / "x.tar:"))
    tar_of(tmp_path / "copy" / "x.tar", {name: files[name] for name in reversed(files)})
    with pytest.raises(ValueError, match=r"copy/x\.tar.*other content"):
        open_source(str(tmp_path / "copy"))


def test_checksums_find_what_no_header_tells(tmp_path, files):
    index = open_source(str(tmp_path / "images"), ScanOptions(checksum=True))
    path = tmp_path / "images" / "a" / "1.jpg"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        Reader(index).read(0)


def test_names_that_lead_out_of_a_tar_lead_nowhere(tmp_path):
    """Members are read by offset and never unpacked; links that lead out of the tar are named as unreadable."""
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encoded(9))
    inside = {"../../evil.jpg": encoded(1), str(tmp_path / "absolute.jpg"): encoded(2)}
    tar_of(tmp_path / "x.tar", inside)
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = kind, str(secret)
            tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    index = open_source(str(tmp_path / "x.tar"))
    good = {os.fsdecode(index.name(i)): Reader(index).read(i) for i in index.readable()}
    assert good == {str(tmp_path / "absolute.jpg").lstrip("/"): encoded(2)}
    assert sorted(index.bad.values())[0].startswith("`..` in the name") and "hard link" in sorted(index.bad.values())[1]
    assert main(["data", "shard", str(tmp_path / "x.tar"), "--out", str(tmp_path / "out")]) == 0
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        assert all(not name.startswith("/") and ".." not in name.split("/") for name in tar.getnames())
    assert sorted(path for path in tmp_path.rglob("*") if path.parent != tmp_path / "out" and path.name != "out") == before
    assert not (tmp_path.parent / "evil.jpg").exists() and not (tmp_path.parents[1] / "evil.jpg").exists()


def test_shards_by_pattern_and_webdataset_classes(tmp_path):
    for shard in range(3):
        tar_of(
            tmp_path / f"{shard:03d}.tar",
            {f"{shard}.{i}.jpg".replace(".", "_", 1): encoded(i) for i in range(2)}
            | {f"{shard}_{i}.cls": str(10 - i).encode() for i in range(2)}
            | {"notes.txt": b"no image"},
        )
    for source in (f"{tmp_path}/{{000..002}}.tar", f"{tmp_path}/*.tar", str(tmp_path)):
        index = open_source(source)
        assert len(index) == 6 and index.classes == ("9", "10") and index.labels.tolist() == [1, 0] * 3
    assert expand(f"{tmp_path}/{{000,002}}.tar") == [f"{tmp_path}/000.tar", f"{tmp_path}/002.tar"]
    with pytest.raises(ValueError, match=r"1 of 4 files do not exist.*003\.tar"):
        open_source(f"{tmp_path}/{{000..003}}.tar")


def test_sources_that_are_none_say_what_is_expected(tmp_path, files, caplog):
    (tmp_path / "x.zip").write_bytes(b"PK")
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    (tmp_path / "list.csv").write_text("file\na.jpg\n")
    for name, message in (
        ("x.zip", "is not a source of images: expected a folder"),
        ("nowhere", "does not exist: expected a folder"),
        ("cut.tar", "not an uncompressed tar"),
        ("list.csv", "must name the columns, 'path'.*'file'"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / name))
    tar_of(tmp_path / "images" / "beside.tar", files)
    with caplog.at_level(logging.WARNING):
        assert len(open_source(str(tmp_path / "images"))) == len(files)
    assert "1 .tar files beside the images are ignored" in caplog.text


def test_a_mix_without_weights_is_one_pile(tmp_path, files):
    tar_of(tmp_path / "x.tar", {"c/z.jpg": encoded(9)})
    (tmp_path / "mix.yaml").write_text("sources: [{source: images}, {source: x.tar}]\n")
    mix = open_source(str(tmp_path / "mix.yaml"))
    assert contents(mix) == files | {"c/z.jpg": encoded(9)}
    assert mix.classes == ("a", "b", "c") and classes(mix)["c/z.jpg"] == "c"
    mix.save(tmp_path / "mix.index")
    assert contents(open_source(str(tmp_path / "mix.index"))) == contents(mix)


def test_weights_of_a_mix_in_a_mix_multiply(tmp_path, files):
    tar_of(tmp_path / "x.tar", {"c/z.jpg": encoded(9)})
    (tmp_path / "inner.yaml").write_text("sources: [{source: images, weight: 3}, {source: x.tar, weight: 1}]\n")
    (tmp_path / "outer.yaml").write_text("sources: [{source: inner.yaml, weight: 2}, {source: images, weight: 2}]\n")
    index = open_source(str(tmp_path / "outer.yaml"))
    assert [part.weight for part in index.parts] == [1.5, 0.5, 2]
    assert [part.count for part in index.parts] == [len(files), 1, len(files)]
    assert mix_of(index) == [[len(files), 375], [1, 125], [len(files), 500]]
    open_source(str(tmp_path / "inner.yaml")).save(tmp_path / "inner.index")  # an index keeps them
    (tmp_path / "outer.yaml").write_text("sources: [{source: inner.index, weight: 1}, {source: images, weight: 1}]\n")
    assert [part.weight for part in open_source(str(tmp_path / "outer.yaml")).parts] == [0.75, 0.25, 1]
    (tmp_path / "outer.yaml").write_text("sources: [{source: inner.yaml}, {source: images}]\n")
    with pytest.raises(ValueError, match=r"inner\.yaml' is a mix with weights: give every source a weight"):
        open_source(str(tmp_path / "outer.yaml"))


@pytest.mark.parametrize(
    "text", ["sources: []", "source: x", "sources: [{source: images, weight: 0}]", "sources: [{weight: 1}]", "["]
)
def test_a_mix_that_is_none_is_refused(tmp_path, files, text):
    (tmp_path / "mix.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"mix\.yaml"):
        open_source(str(tmp_path / "mix.yaml"))


def test_weights_are_exact_shares_and_sources_run_through_exact_epochs():
    counts, weights = [7, 300, 40], [1.0, 2.0, 0.5]
    places = mix_places(weights)
    assert places.sum() == MIX_BLOCK and np.abs(places / MIX_BLOCK - np.array(weights) / 3.5).max() < 1 / MIX_BLOCK
    numbers = np.arange(5 * MIX_BLOCK)
    indices = mixed_indices(numbers, counts, weights, seed=3)
    source = np.searchsorted(np.cumsum(counts), indices, side="right")
    for block in source.reshape(5, MIX_BLOCK):
        assert np.array_equal(np.bincount(block, minlength=3), places)
    for which, first in enumerate((0, 7, 307)):
        own = indices[source == which] - first
        times = np.bincount(own, minlength=counts[which])
        whole = len(own) // counts[which]
        assert times.min() >= whole and times.max() <= whole + 1, which  # exact epochs, the last one begun
    assert np.array_equal(mixed_indices(numbers[777:2345], counts, weights, 3), indices[777:2345])
    assert not np.array_equal(mixed_indices(numbers, counts, weights, 4), indices)
    with pytest.raises(ValueError, match="less than 1/1000"):
        mix_places([1, 1e-5])


def test_changes_between_two_scans_are_listed(tmp_path, files):
    before = open_source(str(tmp_path / "images"))
    os.rename(tmp_path / "images" / "a" / "1.jpg", tmp_path / "images" / "a" / "2.jpg")
    (tmp_path / "images" / "a" / "with blank.jpg").write_bytes(encoded(5))
    found = {os.path.basename(path): what for path, what in changes(before, open_source(str(tmp_path / "images")))}
    assert found["1.jpg"] == "gone" and found["2.jpg"] == "new" and "25x25 pixels now" in found["with blank.jpg"]


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_the_global_batch_of_a_weighted_mix_of_tars_and_files_is_the_same_however_it_is_shared(tmp_path, files, loader):
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    tar_of(tmp_path / "x.tar", {f"c/{i}.jpg": encoded(i) for i in range(7)})
    text = "sources: [{source: images, weight: 1}, {source: x.tar, weight: 3}]\n"
    (tmp_path / "mix.yaml").write_text(text)
    index = open_source(str(tmp_path / "mix.yaml"))

    def whole(world_size: int, micro: int, threads: int = 1, start: int = 0) -> torch.Tensor:
        accumulation, parts = 16 // world_size // micro, []
        for rank in range(world_size):
            stream = ImageBatches(
                DataConfig(source="", crop_size=16, loader=loader, horizontal_flip=True, threads=threads), index, seed=5,
                batch_size=16, micro_batch=micro, rank=rank, world_size=world_size, accumulation=accumulation,
                start_step=start, device="cpu",
            )  # fmt: skip
            taken = torch.stack([next(stream) for _ in range((3 - start) * accumulation)])
            parts.append(taken.unflatten(0, (3 - start, accumulation)))
            stream.close()
        return torch.stack(parts, dim=2).flatten(1, 3)

    expected = whole(1, 16)
    for world_size, micro, threads in ((1, 1, 2), (1, 4, 1), (2, 4, 3), (4, 1, 1), (4, 4, 2)):
        assert torch.equal(whole(world_size, micro, threads), expected), (world_size, micro)
    assert torch.equal(whole(2, 4, start=2), expected[2:])


def test_ranks_check_a_share_of_an_index_and_each_at_least_one_file(tmp_path, monkeypatch):
    """512 ranks that each open 10,000 shards are 5 million opens of one file server."""
    for shard in range(5):
        (tmp_path / "in").mkdir(exist_ok=True)
        tar_of(tmp_path / "in" / f"{shard}.tar", {f"{shard}.png": encoded(shard, "PNG")})
    index = open_source(str(tmp_path / "in" / "*.tar"))
    index.save(tmp_path / "all.index")
    seen: list[str] = []
    real = sources.fingerprint
    monkeypatch.setattr(sources, "fingerprint", lambda path: seen.append(os.path.basename(path)) or real(path))
    for ranks in (2, 3, 8):
        found = []
        for rank in range(ranks):
            seen.clear()
            sources.open_index(tmp_path / "all.index", "all", (rank, ranks))
            assert 1 <= len(seen) <= -(-5 // ranks)
            found += seen
        assert set(found) == {f"{shard}.tar" for shard in range(5)}
    os.truncate(tmp_path / "in" / "3.tar", 512)
    sources.open_index(tmp_path / "all.index", "all", (0, 2))
    with pytest.raises(ValueError, match=r"3\.tar"):
        sources.open_index(tmp_path / "all.index", "all", (1, 2))


def test_paths_in_a_mix_are_expanded_or_refused(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40)).save(tmp_path / name / "0.jpg")
    mix = tmp_path / "mix.yaml"
    mix.write_text("sources: [{source: $ONE_OF_A_MIX}, {source: '~/two'}]\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ONE_OF_A_MIX", str(tmp_path / "one"))
    assert [part.source for part in open_source(str(mix)).parts] == [str(tmp_path / "one"), str(tmp_path / "two")]
    monkeypatch.delenv("ONE_OF_A_MIX")
    mix.write_text("sources: [{source: $ONE_OF_A_MIX/x}, {source: one}, {source: /path/to/images}]\n")
    with pytest.raises(
        ValueError, match=r"source 1: \$ONE_OF_A_MIX is not set(.|\n)*source 3: 'path/to' in /path/to/images is"
    ):
        open_source(str(mix))
