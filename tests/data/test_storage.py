"""Faults of storage while a source is scanned and read: nothing of what is trained on changes, and the run says what fails."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import storage
from ijepa_ds.config import DataConfig
from ijepa_ds.data import pillow, walk
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.shards import write_shards
from ijepa_ds.data.sources import expand, open_source
from ijepa_ds.errors import StorageError, UserError
from tests.storage_cases import Misbehaving

SIDE, BATCH, COUNT, STEPS = 16, 4, 12, 3


@pytest.fixture(params=["torchvision", "dali"])
def loader(request) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(storage, "_PAUSES", (0.001, 0.01))


@pytest.fixture
def folder(tmp_path) -> str:
    for i in range(COUNT):
        place = tmp_path / "images" / f"class{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        Image.fromarray(rng.integers(0, 256, (40 + i, 60 - i, 3), dtype=np.uint8)).save(place / f"{i:02d}.jpg")
    return str(tmp_path / "images")


@pytest.fixture
def disk(monkeypatch) -> Misbehaving:
    return Misbehaving(monkeypatch)


def batches(index: ImageIndex, loader: str, **keys) -> ImageBatches:
    waited = keys.pop("on_storage_wait", lambda: None)
    cfg = DataConfig(source=index.source, crop_size=SIDE, loader=loader, max_bad=0, **keys)
    return ImageBatches(
        cfg, index, seed=0, batch_size=BATCH, micro_batch=BATCH, rank=0, world_size=1, accumulation=1, start_step=0,
        device="cpu", on_storage_wait=waited,
    )  # fmt: skip


def run(index: ImageIndex, loader: str, **keys) -> torch.Tensor:
    stream = batches(index, loader, **keys)
    try:
        images = torch.stack([next(stream) for _ in range(STEPS)])
        assert stream.found == {}
        return images
    finally:
        stream.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOTCONN, errno.ENOMEM, errno.ESHUTDOWN])
def test_a_fault_that_passes_changes_no_pixel(folder, loader, disk, code):
    index = open_source(folder)
    clean = run(index, loader)
    faults = [disk.fail("open", ".jpg", code, times=8), disk.fail("pread", "05.jpg", code, times=6)]
    assert torch.equal(run(index, loader), clean)
    assert [fault.seen for fault in faults] == [8, 6]


def test_a_fault_that_stays_ends_the_run_and_condemns_no_image(folder, loader, disk):
    index = open_source(folder)
    disk.fail("pread", ".jpg", errno.EIO)
    waited = []
    stream = batches(index, loader, storage_timeout=1.0, on_storage_wait=lambda: waited.append(1))
    with pytest.raises(StorageError, match=r"\.jpg'.*Input/output error.*data\.storage_timeout: 1"):
        next(stream)
    assert stream.found == {} and waited
    stream.close()


def test_a_lost_mount_condemns_no_image(folder, loader, tmp_path):
    index = open_source(folder)
    os.rename(folder, tmp_path / "elsewhere")
    stream = batches(index, loader, storage_timeout=0.05)
    with pytest.raises(StorageError, match="No such file"):
        next(stream)
    assert stream.found == {}
    stream.close()


def test_a_stale_descriptor_of_a_shard_is_opened_again(folder, loader, disk, tmp_path):
    write_shards(open_source(folder), tmp_path / "shards", size=1 << 20)
    index = open_source(str(tmp_path / "shards"))
    clean = run(index, loader)
    disk.opened.clear()
    disk.fail("pread", "images-00000.tar", errno.ESTALE, times=3)
    assert torch.equal(run(index, loader), clean)
    assert sum("images-00000.tar" in path for path in disk.opened) >= 2


def test_a_shard_that_vanishes_is_no_bad_image(folder, loader, tmp_path):
    write_shards(open_source(folder), tmp_path / "shards", size=1 << 20)
    index = open_source(str(tmp_path / "shards"))
    os.remove(tmp_path / "shards" / "images-00000.tar")
    stream = batches(index, loader, storage_timeout=0.05)
    with pytest.raises(StorageError, match="No such file"):
        next(stream)
    assert stream.found == {}
    stream.close()


def test_a_stale_index_file_is_opened_again(folder, loader, disk, tmp_path):
    open_source(folder).save(tmp_path / "images.index")
    index = open_source(str(tmp_path / "images.index"))
    clean = run(index, loader)
    fault = disk.fail("pread", "images.index", errno.ESTALE, times=2)
    assert torch.equal(run(index, loader), clean) and fault.seen == 2


def test_a_scan_waits_and_finds_the_same_images(folder, disk):
    clean = open_source(folder)
    faults = [
        disk.fail("scandir", "class1", errno.EIO, times=3),
        disk.fail("stat", "class2", errno.ESTALE, times=2),
        disk.fail("open", "03.jpg", errno.ENFILE, times=2),
        disk.fail("pread", "04.jpg", errno.EIO, times=2),
    ]
    index = open_source(folder)
    assert index.checksum == clean.checksum and not index.bad and all(fault.seen == fault.times for fault in faults)


@pytest.mark.parametrize("call", ["scandir", "open", "pread", "stat"])
def test_a_scan_on_storage_that_stays_broken_loses_nothing_in_silence(folder, disk, call):
    disk.fail(call, "class1", errno.EIO)
    with pytest.raises(StorageError, match=r"class1.*Input/output error"):
        open_source(folder, ScanOptions(storage_timeout=0.05))


def test_a_folder_whose_kind_is_not_known_is_no_file(folder, monkeypatch):
    """Some file systems tell whether an entry is a folder only by a further call, which may fail."""

    class Entry:
        name = b"class1"

        def is_dir(self) -> bool:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        walk._is_folder(Entry())


def test_a_folder_that_cannot_be_listed_is_refused_with_its_name(folder, disk):
    disk.fail("scandir", "class1", errno.EACCES)
    with pytest.raises(UserError, match=r"1 folders below .*class1.*cannot be listed: Permission denied.*make them readable"):
        open_source(folder)


def test_a_source_that_does_not_answer_is_not_called_missing(folder, disk):
    disk.fail("stat", "images", errno.ESTALE)
    with pytest.raises(StorageError, match="Stale file handle"):
        open_source(folder, ScanOptions(storage_timeout=0.05))


def test_an_image_that_fails_alone_in_dali_is_decoded_by_pillow(folder, monkeypatch, caplog):
    """DALI refuses one JPEG that Pillow reads; a PNG of the same pixels is given to it from then on."""
    dali = pytest.importorskip("ijepa_ds.data.dali")
    index = open_source(folder)
    refused = Path(os.fsdecode(index.path(5))).read_bytes()
    clean = run(index, "dali")
    built = dali.build_pipeline

    def build(source, *rest, **keys):
        def checked(info):
            inputs = source(info)
            if any(content.tobytes() == refused for content in inputs[0]):
                raise RuntimeError("nvImageCodec: unsupported subsampling")
            return inputs

        return built(checked, *rest, **keys)

    monkeypatch.setattr(dali, "build_pipeline", build)
    images = run(index, "dali")
    assert "decodes it in this run" in caplog.text and index.display_path(5) in caplog.text
    assert (images.float() - clean.float()).abs().mean() < 1.0


def test_a_shard_that_cannot_be_asked_for_is_not_called_missing(tmp_path, monkeypatch):
    ask = os.stat

    def broken(path, *args, **more):
        if str(path).endswith("001.tar"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return ask(path, *args, **more)

    (tmp_path / "000.tar").touch()
    (tmp_path / "001.tar").touch()
    monkeypatch.setattr(os, "stat", broken)
    with pytest.raises(OSError, match="Input/output error"):
        expand(f"{tmp_path}/{{000..001}}.tar")


def test_a_host_without_memory_condemns_no_image(folder, monkeypatch):
    def refuse(image):
        raise MemoryError

    monkeypatch.setattr(pillow, "to_rgb", refuse)
    stream = batches(open_source(folder), "torchvision")
    with pytest.raises(MemoryError, match=r"not enough memory to decode an image of \d+x\d+ pixels.*data\.max_pixels"):
        next(stream)
    assert stream.found == {}
    stream.close()
