"""Scan, check and both loaders agree on every image: readable or not, and the same pixels."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds.cli import main
from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.index_file import BY_PILLOW
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.pillow import decode
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from tests.cases.making import coded, photo, write_tree

SIDE, COUNT = 32, 8
JPEG, PNG = coded(photo(1)), coded(photo(1), "PNG")


def chunk(name: bytes, content: bytes, checksum_off_by: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) ^ checksum_off_by)


def bmp(bits: int, compression: int, pixels: bytes, middle: bytes = b"", side: int = 64) -> bytes:
    start = 54 + len(middle)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    colours = len(middle) // 4 if bits <= 8 else 0
    return (
        head
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, compression, len(pixels), 0, 0, colours, 0)
        + middle
        + pixels
    )


def without_segment(jpeg: bytes, marker: bytes) -> bytes:
    at = jpeg.index(marker)
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def junk(jpeg: bytes, before: bytes, count: int = 5) -> bytes:
    at = jpeg.index(before)
    return jpeg[:at] + bytes(count) + jpeg[at:]


def rgb_jpeg() -> bytes:
    """Three components that Adobe's marker calls RGB."""
    at = JPEG.index(b"\xff\xdb")
    return JPEG[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00" + JPEG[at:]


def mpo() -> bytes:
    one, two = (Image.fromarray(photo(seed)) for seed in range(2))
    one.save(buffer := io.BytesIO(), format="MPO", save_all=True, append_images=[two])
    return buffer.getvalue()


def animated(kind: str, **options: object) -> bytes:
    still, *frames = (Image.fromarray(photo(seed)) for seed in range(3))
    still.save(buffer := io.BytesIO(), kind, save_all=True, append_images=frames, **options)
    return buffer.getvalue()


def transparent_palette() -> Image.Image:
    """Pillow warns about its conversion."""
    image = Image.fromarray(photo(4)).quantize(16)
    image.info["transparency"] = bytes(range(0, 256, 16))
    return image


def patched(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


RANDOM = np.random.default_rng(0)
PALETTE = bytes(value for i in range(256) for value in (i, 255 - i, i // 2, 0))
BIG = zlib.compress(bytes(3 << 20))
IDAT = PNG.index(b"IDAT")
# Read by Pillow. True: the header tells that Pillow decodes it in every loader.
READ: dict[str, tuple[bytes, bool]] = {
    "5-5-5.bmp": (bmp(16, 0, RANDOM.bytes(64 * 128)), True),
    "5-6-5.bmp": (bmp(16, 3, RANDOM.bytes(64 * 128), struct.pack("<III", 0xF800, 0x7E0, 0x1F)), True),
    "runs.bmp": (bmp(8, 1, b"".join(bytes([64, row * 3, 0, 0]) for row in range(64)) + b"\0\1", PALETTE), True),
    "one_bit.bmp": (coded(Image.fromarray(photo(2)).convert("1"), "BMP"), True),
    "cmyk_without_adobe.jpg": (without_segment(coded(Image.fromarray(photo(3)).convert("CMYK")), b"\xff\xee"), True),
    "rgb.jpg": (rgb_jpeg(), True),
    "junk_between_markers.jpg": (junk(JPEG, b"\xff\xdb"), True),
    "mpo_with_junk.jpg": (junk(mpo(), b"\xff\xe2", 1), True),
    "mpo.jpg": (mpo(), False),
    "junk_before_end.jpg": (JPEG[:-2] + b"\x7f" * 32 + JPEG[-2:], False),
    "wrong_profile.jpg": (JPEG[:2] + b"\xff\xe2\x00\x12ICC_PROFILE\0\x05\x02xx" + JPEG[2:], False),
    "still_and_frames.png": (animated("PNG", default_image=True), True),
    "transparent_palette.png": (coded(transparent_palette(), "PNG"), False),
    "frames.webp": (animated("WEBP"), True),
    "large_profile.png": (PNG[:33] + chunk(b"iCCP", b"x\0\0" + BIG) + PNG[33:], False),
    "large_text.png": (PNG[:33] + chunk(b"zTXt", b"note\0\0" + BIG) + PNG[33:], False),
    "text_with_wrong_checksum.png": (PNG[:33] + chunk(b"tEXt", b"note\0hello", 1) + PNG[33:], True),
    "pixels_with_wrong_checksum.png": (patched(PNG, len(PNG) - 16, b"\0\0\0\0"), False),
}
TWELVE = patched(patched(JPEG, JPEG.index(b"\xff\xc0") + 1, b"\xc1"), JPEG.index(b"\xff\xc0") + 4, b"\x0c")
# Unreadable -> (bytes, words of the reason, found by the scan).
REFUSED: dict[str, tuple[bytes, str, bool]] = {
    "lossless.jpg": (patched(JPEG, JPEG.index(b"\xff\xc0") + 1, b"\xc3"), "lossless JPEG", True),
    "twelve_bits.jpg": (TWELVE, "12 bits a sample", True),
    "header_with_wrong_checksum.png": (patched(PNG, 29, b"\0\0\0\0"), "damaged header: its checksum is wrong", True),
    "bad_table.jpg": (patched(JPEG, JPEG.index(b"\xff\xc4") + 5, b"\xff" * 16), "damaged: the compressed pixels", False),
    "marker_inside.jpg": (
        patched(JPEG, JPEG.index(b"\xff\xda") + 100, b"\xff\xf7\x80\0"),
        "damaged: the compressed pixels",
        False,
    ),
}


@pytest.fixture(params=["torchvision", "dali"])
def loader(request) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


def first_batch(index: ImageIndex, loader: str, count: int = COUNT, **keys) -> tuple[torch.Tensor, list[int], dict[int, str]]:
    """Whole images of the first batch, their positions, and what was rejected."""
    cfg = DataConfig(
        source=index.source,
        crop_size=SIDE,
        loader=loader,
        crop_scale=(1.0, 1.0),
        crop_ratio=(0.01, 100.0),
        max_bad_share=0.9,
        **keys,
    )
    stream = ImageBatches(
        cfg,
        index,
        seed=0,
        batch_size=count,
        micro_batch=count,
        rank=0,
        world_size=1,
        accumulation=1,
        start_step=0,
        device="cpu",
    )
    try:
        images, positions = next(stream), stream._plan.samples(0).indices.tolist()
        return images, positions, stream.found
    finally:
        stream.close()


def test_every_kind_is_read_alike(tmp_path, loader):
    root = write_tree(tmp_path / "tree", {name: content for name, (content, _) in READ.items()})
    index = open_source(str(root))
    assert not index.bad
    flags = {os.fsdecode(index.name(i)): bool(index.entries["format"][i] & BY_PILLOW) for i in range(len(index))}
    assert flags == {name: by_pillow for name, (_, by_pillow) in READ.items()}
    images, positions, found = first_batch(index, loader, len(index))
    assert found == {} and sorted(positions) == list(range(len(index)))
    for pixels, position in zip(images, positions, strict=True):
        right = decode(READ[os.fsdecode(index.name(position))][0]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        apart = np.abs(pixels.numpy().astype(int) - np.asarray(right))
        assert np.median(apart) <= 2 and apart.mean() <= 2, index.paths[position]
    assert main(["data", "check", str(root), "--threads", "1"]) == 0


@pytest.mark.parametrize("name", ["5-5-5.bmp", "junk_between_markers.jpg", "pixels_with_wrong_checksum.png"])
def test_a_run_of_nothing_but_such_files_trains(tmp_path, loader, name):
    content = READ[name][0]
    index = open_source(str(write_tree(tmp_path / "tree", {f"{i}{name[-4:]}": content for i in range(COUNT)})))
    images, _, found = first_batch(index, loader)
    assert found == {} and torch.equal(images, images[:1].expand(images.shape))


def test_what_cannot_be_read_is_named_in_words_by_all(tmp_path, loader, caplog):
    good = {f"good_{i}.png": coded(photo(10 + i), "PNG") for i in range(COUNT)}
    root = write_tree(tmp_path / "tree", {name: content for name, (content, _, _) in REFUSED.items()} | good)
    index = open_source(str(root))
    scanned = {os.fsdecode(index.name(i)): reason for i, reason in index.bad.items()}
    assert scanned.keys() == {name for name, (_, _, early) in REFUSED.items() if early}
    _, _, found = first_batch(index, loader, len(index))
    reasons = scanned | {os.fsdecode(index.name(i)): reason for i, reason in found.items()}
    assert reasons.keys() == REFUSED.keys()
    assert all(words in reasons[name] for name, (_, words, _) in REFUSED.items()), reasons
    with caplog.at_level("INFO"):
        assert main(["data", "check", str(root)]) == 1
    lines = caplog.text.splitlines()
    assert all(any(name in line and words in line for line in lines) for name, (_, words, _) in REFUSED.items())


def test_strict_names_harmless_bytes_too(tmp_path, caplog):
    names = ("junk_before_end.jpg", "junk_between_markers.jpg", "wrong_profile.jpg")
    root = write_tree(tmp_path / "tree", {name: READ[name][0] for name in names} | {"good.jpg": JPEG})
    assert main(["data", "check", str(root)]) == 0
    with caplog.at_level("INFO"):
        assert main(["data", "check", str(root), "--strict"]) == 1
    assert "4 images, 2 of them cannot be read" in caplog.text or "4 images, 3 of them cannot be read" in caplog.text


def test_fix_index_stores_which_decoder_reads_a_file(tmp_path):
    pytest.importorskip("nvidia.dali")
    names = ("pixels_with_wrong_checksum.png", "5-5-5.bmp")
    root = write_tree(
        tmp_path / "tree", {name: READ[name][0] for name in names} | {"good.jpg": JPEG, "bad.jpg": REFUSED["bad_table.jpg"][0]}
    )
    assert main(["data", "check", str(root), "--fix-index", str(tmp_path / "i")]) == 0
    index = open_source(str(tmp_path / "i"))
    flags = {os.fsdecode(index.name(i)): bool(index.entries["format"][i] & BY_PILLOW) for i in range(len(index))}
    assert flags == {"5-5-5.bmp": True, "good.jpg": False, "pixels_with_wrong_checksum.png": True}


def test_the_limit_of_pixels_holds_everywhere(tmp_path, loader):
    """Also where an index was made with a larger limit."""
    files = {f"{i}.png": coded(photo(i, 40, 40), "PNG") for i in range(4)} | {"large.png": coded(photo(9, 60, 60), "PNG")}
    root = write_tree(tmp_path / "tree", files)
    index = open_source(str(root))
    _, _, found = first_batch(index, loader, 10, max_pixels=2000)
    assert list(found.values()) == ["60x60 pixels, more than data.max_pixels = 2000"]
    assert "60x60 pixels" in open_source(str(root), ScanOptions(max_pixels=2000)).bad[4]
    assert main(["data", "check", str(root), "--max-pixels", "2000"]) == 1


def test_the_corpus_command_finds_disagreements_by_kind(tmp_path, capsys, monkeypatch):
    pytest.importorskip("nvidia.dali")
    from tests import corpus

    files = {name: content for name, (content, _) in READ.items()} | {
        name: content for name, (content, _, _) in REFUSED.items()
    }
    root = write_tree(tmp_path / "tree", files)
    assert corpus.main([str(root)]) == 0
    printed = capsys.readouterr().out
    assert "0  the DALI loader has other pixels" in printed and "3  agree: unreadable by the header" in printed
    monkeypatch.setattr(corpus.DaliDecoder, "decode", lambda self, content: np.zeros((48, 64, 3), np.uint8))
    assert corpus.main([str(root)]) == 1
    assert "mpo.jpg': other pixels" in capsys.readouterr().out


def test_reasons_of_a_run_are_in_words(tmp_path):
    """What `bad_samples.jsonl` holds: no exception's name, no text of a library about its own state."""
    from ijepa_ds.training import bad_samples

    root = write_tree(tmp_path / "tree", {"bad.jpg": REFUSED["lossless.jpg"][0], "good.jpg": JPEG})
    index = open_source(str(root))
    bad = bad_samples.BadSamples(DataConfig(source=str(root), max_bad_share=0.9), index, tmp_path, 0, {})
    rows = [json.loads(line) for line in (tmp_path / bad_samples.FILE).read_text().splitlines()]
    assert len(rows) == len(bad) == 1 and rows[0]["reason"].startswith("lossless JPEG, which is not supported")
