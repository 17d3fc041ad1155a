"""The index: which files are images, in which order, how large; what is left out and what is said of it."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source

LIMIT = 1_000_000


def write(path, size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


def scan(path, limit=LIMIT) -> ImageIndex:
    return open_source(str(path), ScanOptions(max_pixels=limit))


def names(folder: ImageIndex) -> list[bytes]:
    return [folder.name(i) for i in folder.readable()]


def test_order_is_that_of_the_relative_paths_bytes(tmp_path):
    for name in ("b.jpg", "a/2.png", "a-b/1.jpg", "a/10.JPEG", "B.JPG", "a/sub/1.webp", "é.bmp", "a.jpg"):
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    write(tmp_path / ".hidden.jpg")
    folder = scan(tmp_path)
    assert names(folder) == sorted(names(folder))
    assert len(folder) == 8
    assert folder.paths[0] == str(tmp_path / "B.JPG")
    assert folder.paths[-1] == str(tmp_path / "é.bmp")
    assert folder.paths[1:3] == [folder.paths[1], folder.paths[2]]
    with pytest.raises(IndexError):
        folder.paths[8]


def test_sizes_are_pillows_for_every_format(tmp_path):
    for i, (name, options) in enumerate(
        [("baseline.jpg", {}), ("progressive.jpg", {"progressive": True}), ("a.png", {}), ("a.webp", {}),
         ("a.bmp", {}), ("long_header.jpg", {"icc_profile": b"x" * 150_000, "comment": b"y" * 60_000})]
    ):  # fmt: skip
        write(tmp_path / name, size=(20 + i, 40 - i), **options)
    Image.new("L", (7, 9)).save(tmp_path / "gray.jpg")
    Image.new("CMYK", (5, 4)).save(tmp_path / "cmyk.jpg")
    os.rename(write(tmp_path / "x.png", size=(3, 2)), tmp_path / "png_named.jpg")
    folder = scan(tmp_path)
    assert len(folder) == 9 and not folder.bad
    for path, size in zip(folder.paths, folder.sizes.tolist(), strict=True):
        with Image.open(path) as image:
            assert tuple(size) == image.size, path


def test_exif_orientation_does_not_turn_the_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "turned.jpg", size=(30, 10), exif=exif)
    assert scan(tmp_path).sizes.tolist() == [[30, 10]]


def test_labels_are_the_sorted_class_folders(tmp_path):
    for name in ("dog/1.jpg", "cat/x/1.jpg", "cat/2.jpg", "cat-big/1.jpg", "loose.jpg"):
        write(tmp_path / name)
    (tmp_path / "empty").mkdir()
    folder = scan(tmp_path)
    assert folder.classes == ("cat", "cat-big", "cat/x", "dog")
    assert dict(zip(names(folder), folder.labels.tolist(), strict=True)) == {
        b"cat/2.jpg": 0, b"cat/x/1.jpg": 2, b"cat-big/1.jpg": 1, b"dog/1.jpg": 3, b"loose.jpg": -1,
    }  # fmt: skip


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere" / "1.jpg")
    root = tmp_path / "root"
    write(root / "a" / "1.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "gone.jpg").symlink_to(root / "nothing")
    folder = scan(root)
    assert names(folder) == [b"a/1.jpg", b"linked/1.jpg"]
    assert [os.path.basename(path) for path, _ in folder.list_bad()] == ["gone.jpg"]


def test_odd_names_are_kept_byte_for_byte(tmp_path):
    for name in ("with blank.jpg", "quote'\".jpg", "new\nline.jpg", "größe.jpg"):
        write(tmp_path / name)
    os.rename(write(tmp_path / "x.jpg"), os.path.join(os.fsencode(tmp_path), b"latin\xe9.jpg"))
    folder = scan(tmp_path)
    assert len(folder) == 5
    for path in folder.paths:
        assert os.path.exists(path)


def test_unreadable_files_are_left_out_and_named(tmp_path, caplog):
    whole = write(tmp_path / "whole.jpg", size=(64, 64))
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:-200])
    png = write(tmp_path / "whole.png", size=(64, 64))
    (tmp_path / "cut.png").write_bytes(png.read_bytes()[:-900])
    webp = write(tmp_path / "whole.webp", size=(64, 64))
    (tmp_path / "cut.webp").write_bytes(webp.read_bytes()[:-90])
    (tmp_path / "tail.jpg").write_bytes(whole.read_bytes() + b"bytes after the end")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    Image.new("P", (4, 4)).save(tmp_path / "moving.gif")
    os.rename(tmp_path / "moving.gif", tmp_path / "gif.jpg")
    write(tmp_path / "huge.png", size=(300, 300))
    with caplog.at_level(logging.WARNING):
        folder = scan(tmp_path, 300 * 299)
    reasons = {os.path.basename(path): reason for path, reason in folder.list_bad()}
    assert names(folder) == [b"tail.jpg", b"whole.jpg", b"whole.png", b"whole.webp"]
    assert set(reasons) == {"cut.jpg", "cut.png", "cut.webp", "empty.jpg", "page.jpg", "gif.jpg", "huge.png"}
    assert "truncated" in reasons["cut.jpg"]
    assert reasons["empty.jpg"] == "empty file"
    assert "not a JPEG" in reasons["page.jpg"] and "not a JPEG" in reasons["gif.jpg"]
    assert "data.max_pixels" in reasons["huge.png"]
    assert "7 unreadable" in caplog.text and "and 2 more" in caplog.text


@pytest.mark.parametrize("garbage", [b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\x00\x00", b"\xff\xd8" + b"\xff" * 99])
def test_headers_that_lead_nowhere_end(tmp_path, garbage):
    write(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_bytes(garbage)
    assert len(scan(tmp_path).bad) == 1


def test_nothing_readable_says_what_was_seen(tmp_path):
    with pytest.raises(ValueError, match=r"does not exist: expected a folder"):
        scan(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no readable image .* 0 files seen, none with a name ending in \.bmp"):
        scan(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.jpg").write_text("x")
    with pytest.raises(ValueError, match=r"1 image files are unreadable: .*b\.jpg.*not a JPEG") as error:
        scan(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_checksum_sees_names_and_sizes_but_not_the_place(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root in (first, second):
        write(root / "a" / "1.jpg")
        write(root / "b.jpg")
    original = scan(first).checksum
    assert original == scan(second).checksum
    write(second / "b.jpg", size=(8, 12))
    assert original != scan(second).checksum
    os.rename(first / "b.jpg", first / "c.jpg")
    assert original != scan(first).checksum
