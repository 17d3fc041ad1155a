"""Memory is bounded by the result and by `data.max_pixels`, whatever an image claims."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from ijepa_ds.data import transforms
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import UnreadableError, load_eval_images, resize_centre_crop
from ijepa_ds.evals.folders import read_pair
from ijepa_ds.evals.readable import without_unreadable
from tests.cases.making import coded, photo, write_tree


def usual(image: Image.Image, size: int) -> np.ndarray:
    """Resize the whole image, then cut out the centre, as torchvision does."""
    shorter, (width, height) = round(size * 256 / 224), image.size
    target = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size))).astype(int)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (375, 500), (500, 333), (224, 224), (256, 256), (1000, 97), (31, 33)])
@pytest.mark.parametrize("size", [224, 96, 64])
def test_ordinary_images_are_cropped_as_usual(shape, size):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for pixels in (photo(1, *shape), noise):
        image = Image.fromarray(pixels)
        if image.size == (size, size):
            continue
        assert np.abs(np.asarray(resize_centre_crop(image, size)).astype(int) - usual(image, size)).max() == 0


@pytest.mark.parametrize("shape", [(20, 400), (400, 20), (9, 300)])
def test_crop_before_resize_of_strips_equals_the_usual_order_nearly(shape):
    image = Image.fromarray(photo(1, *shape))
    assert np.abs(np.asarray(resize_centre_crop(image, 96)).astype(int) - usual(image, 96)).max() <= 2


@pytest.mark.parametrize("shape", [(1, 60000), (60000, 1), (3, 20000)])
def test_a_strip_takes_no_more_than_its_result(tmp_path, shape):
    Image.fromarray(np.full((*shape, 3), 99, np.uint8)).save(tmp_path / "strip.png")
    sizes = []
    resize = Image.Image.resize

    def spy(self, size, *rest, **keys):
        sizes.append(size)
        return resize(self, size, *rest, **keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", spy)
        pixels = load_eval_images([str(tmp_path / "strip.png")], 224, 1)
    assert sizes == [(224, 224)] and (pixels == 99).all()


def test_a_small_file_that_claims_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 32768, 32768, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "claim.png").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=r"claim\.png.*32768x32768 pixels, more than data\.max_pixels"):
        load_eval_images([str(tmp_path / "claim.png")], 224, 1)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_file_far_larger_than_its_pixels_is_refused_before_it_is_read(tmp_path):
    root = write_tree(tmp_path / "tree", {"a/1.jpg": coded(photo(1)), "a/large.jpg": coded(photo(2))})
    with open(root / "a/large.jpg", "ab") as file:
        file.truncate((64 << 20) + 16 * 10**4 + 1)  # a hole
    bad = open_source(str(root), ScanOptions(max_pixels=10**4)).bad
    assert list(bad) == [1] and bad[1].startswith("67,268,865 bytes, more than")


def test_a_memory_error_names_the_file(tmp_path, monkeypatch):
    root = write_tree(tmp_path / "tree", {"a/1.jpg": coded(photo(1))})

    def refuse(*_):
        raise MemoryError

    monkeypatch.setattr(transforms, "resize_centre_crop", refuse)
    with pytest.raises(UnreadableError, match=r"a/1\.jpg': not enough memory"):
        load_eval_images([str(root / "a/1.jpg")], 224, 1)


def test_unreadable_images_are_left_out_of_an_evaluation(tmp_path):
    broken = coded(photo(9), "PNG")
    broken = broken[:60] + bytes(200) + broken[260:]  # the header is whole
    files = {f"{part}/{c}/{i}.png": coded(photo(i), "PNG") for part in ("train", "test") for c in "ab" for i in range(3)}
    write_tree(tmp_path, files | {"test/a/broken.png": broken})
    pair = read_pair(str(tmp_path / "train"), str(tmp_path / "test"))
    assert len(pair.test.labels) == 7
    fixed = without_unreadable(pair, 2, 10**6)
    assert fixed.test.labels.tolist() == [0, 0, 0, 1, 1, 1] and len(fixed.train.labels) == 6
    assert not any("broken" in str(fixed.test.paths[i]) for i in range(6))
    assert "1 images cannot be read and are left out" in fixed.notes[-1] and "broken.png" in fixed.notes[-1]
