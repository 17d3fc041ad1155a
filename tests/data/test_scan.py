"""A scan goes on after an interruption, shows its progress, and reads tars at the same time."""

import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_ds.data import inspecting, tars
from ijepa_ds.data import scan as scanning
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.journal import Journal
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.tars import ahead

FOLDERS, IMAGES = 24, 6


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(FOLDERS):
        place = tmp_path / "images" / f"n{i:03d}"
        place.mkdir(parents=True)
        for j in range(IMAGES):
            Image.fromarray(np.full((10 + i, 20 + j, 3), 10 * j, dtype=np.uint8)).save(place / f"{j}.png")
    return tmp_path / "images"


def same(one: ImageIndex, other: ImageIndex) -> bool:
    return one.checksum == other.checksum and np.array_equal(one.entries, other.entries) and one.classes == other.classes


class Looked:
    """Counts the images that a scan opens; `limit`: the scan is interrupted after so many."""

    def __init__(self, monkeypatch, limit: float = float("inf")) -> None:
        self.count, lock, real = 0, threading.Lock(), inspecting._inspect

        def inspect(*arguments):
            with lock:
                self.count += 1
                if self.count > limit:
                    raise KeyboardInterrupt
            return real(*arguments)

        monkeypatch.setattr(inspecting, "_inspect", inspect)


def interrupt(folder: Path | str, options: ScanOptions, limit: int) -> None:
    """A scan that ends in its middle, whose windows are small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scanning, "_THREADS", 1)
        patch.setattr(scanning, "_CHUNK", 8)
        Looked(patch, limit)
        with pytest.raises(KeyboardInterrupt):
            open_source(str(folder), options)


def test_an_interrupted_scan_goes_on(folder, tmp_path, monkeypatch):
    clean, journal = open_source(str(folder)), tmp_path / "images.scan"
    options = ScanOptions(journal=journal)
    monkeypatch.setattr(scanning, "_CHUNK", 8)
    interrupt(folder, options, limit=100)
    with open(journal, "ab") as file:
        file.write(b'["half a li')
    looked = Looked(monkeypatch)
    assert same(open_source(str(folder), options), clean)
    total = FOLDERS * IMAGES
    assert total - 100 <= looked.count < total  # what was found is not looked at again
    again = looked.count
    assert same(open_source(str(folder), options), clean) and looked.count == again


def test_tar_headers_that_were_read_are_kept(folder, tmp_path, monkeypatch):
    for place in sorted(folder.iterdir()):
        with tarfile.open(tmp_path / f"{place.name}.tar", "w") as tar:
            for image in sorted(place.iterdir()):
                tar.add(image, f"{place.name}/{image.name}")
            tar.add(__file__, "notes.txt")
    pattern, options = str(tmp_path / "n*.tar"), ScanOptions(journal=tmp_path / "images.scan")
    clean, real, read = open_source(pattern), tars.read_members, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tars, "_AT_ONCE", 2)
        interrupt(pattern, options, limit=100)

    def counted(path, end):
        read.append(Path(path).name)
        return real(path, end)

    monkeypatch.setattr(tars, "read_members", counted)
    assert same(open_source(pattern, options), clean)
    assert 0 < len(set(read)) == len(read) <= FOLDERS // 2
    read.clear()
    with tarfile.open(tmp_path / "n003.tar", "a") as tar:
        tar.add(folder / "n000" / "0.png", "n003/new.png")
    assert len(open_source(pattern, options)) == len(clean) + 1 and read == ["n003.tar"]


def test_a_folder_that_changed_is_looked_at_again(folder, tmp_path, monkeypatch):
    options = ScanOptions(journal=tmp_path / "images.scan")
    monkeypatch.setattr(scanning, "_CHUNK", 8)
    open_source(str(folder), options)
    Image.new("RGB", (7, 9)).save(folder / "n001" / "new.png")
    looked = Looked(monkeypatch)
    index = open_source(str(folder), options)
    assert same(index, open_source(str(folder))) and len(index) == FOLDERS * IMAGES + 1
    assert 1 <= looked.count < 2 * FOLDERS * IMAGES  # the journal is used in the first of the two scans
    assert looked.count - len(index) < FOLDERS * IMAGES // 2


def test_an_unreadable_image_may_be_repaired_before_the_scan_goes_on(folder, tmp_path):
    options = ScanOptions(journal=tmp_path / "images.scan")
    content = (folder / "n003" / "2.png").read_bytes()
    (folder / "n003" / "2.png").write_bytes(b"text")
    assert len(open_source(str(folder), options).bad) == 1
    (folder / "n003" / "2.png").write_bytes(content)
    assert not open_source(str(folder), options).bad


def test_a_journal_that_cannot_be_written_does_not_end_the_scan(folder, tmp_path, caplog):
    assert len(open_source(str(folder), ScanOptions(journal=tmp_path / "missing" / "images.scan"))) == FOLDERS * IMAGES
    assert "it starts again" in caplog.text


def test_a_damaged_journal_ends_at_the_damage(tmp_path):
    journal = Journal(tmp_path / "scan")
    journal.add([(bytes([n] * 16), [[n]]) for n in range(3)])
    journal.close()
    lines = (tmp_path / "scan").read_bytes().splitlines(keepends=True)
    (tmp_path / "scan").write_bytes(lines[0] + b"damage\n" + lines[2])
    again = Journal(tmp_path / "scan")
    assert len(again) == 1 and again.find(bytes(16)) == [[0]] and again.find(bytes([2] * 16)) is None
    again.add([(bytes([7] * 16), [[7]])])
    assert again.find(bytes([7] * 16)) is None  # it was found in this scan
    again.close()
    last = Journal(tmp_path / "scan")
    assert len(last) == 2
    last.close()


def test_a_scan_beats_for_those_who_wait(folder):
    beats = []
    open_source(str(folder), ScanOptions(beat=lambda: beats.append(1)))
    assert len(beats) >= FOLDERS


def test_tars_are_read_at_the_same_time_and_come_in_order(tmp_path):
    """The first result is only ready when the 31 after it are under way."""
    begun = threading.Semaphore(0)

    def work(number: int) -> int:
        begun.release()
        if number == 0:
            assert all(begun.acquire(timeout=60) for _ in range(32))
        return number

    with ThreadPoolExecutor(32) as pool:
        assert list(ahead(pool, work, range(100), 32)) == list(range(100))


def test_many_tars_are_scanned_as_one_after_the_other(folder, tmp_path):
    for i in range(40):
        with tarfile.open(tmp_path / f"{i:03d}.tar", "w") as tar:
            for j in range(3):
                tar.add(folder / f"n{i % FOLDERS:03d}" / f"{j}.png", f"class{i % 4}/{i}_{j}.png")
    index = open_source(str(tmp_path / "*.tar"))
    assert [os.fsdecode(index.name(n)) for n in range(len(index))] == [
        f"class{i % 4}/{i}_{j}.png" for i in range(40) for j in range(3)
    ]
    assert not index.bad and len(index.containers) == 40
