"""The whole list of bad input: what each becomes, in the index, in `data check`, and in a run's pixels."""

import errno
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import storage
from ijepa_ds.cli import main
from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.order import sample_indices
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source

SIDE, BATCH, STEPS, LIMIT = 16, 8, 4, 10**6
GOOD = 12


def pixels(seed: int, height: int = 44, width: int = 60) -> np.ndarray:
    """Something smooth, like a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def coded(image: Image.Image | np.ndarray, kind: str = "JPEG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer := io.BytesIO(), kind, **options)
    return buffer.getvalue()


def jpeg_that_lies(width: int, height: int) -> bytes:
    content = bytearray(coded(pixels(1)))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def png_that_lies(width: int, height: int) -> bytes:
    content = bytearray(coded(pixels(1), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def zeroed() -> bytes:
    content = bytearray(coded(pixels(1, 200, 200)))
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    return bytes(content)


# What -> (content, found by the scan of headers, found by `data check`)
BAD: dict[str, tuple[bytes, str | None, str]] = {
    "truncated.jpg": (coded(pixels(1))[:-300], "truncated", "truncated"),
    "truncated.png": (coded(pixels(1), "PNG")[:-300], "truncated", "truncated"),
    "empty.jpg": (b"", "empty file", "empty file"),
    "text.jpg": (b"hello", "not a JPEG", "not a JPEG"),
    "page.jpg": (b"<!DOCTYPE html><html>404</html>", "not a JPEG", "not a JPEG"),
    "gif.jpg": (coded(Image.new("P", (9, 9)), "GIF"), "not a JPEG", "not a JPEG"),
    "huge.jpg": (
        coded(Image.new("1", (30000, 30000)), "PNG"),
        "30000x30000 pixels, more than data.max_pixels",
        "30000x30000 pixels",
    ),
    "lies_larger.png": (png_that_lies(90, 80), None, "do not fit the size in the header"),
    "lies_larger.jpg": (jpeg_that_lies(120, 90), None, "premature end"),
    "lies_smaller.jpg": (jpeg_that_lies(16, 16), None, "extraneous bytes"),
    "zeroed.jpg": (zeroed(), None, "damaged"),
}
DEEP = (np.arange(40 * 50).reshape(40, 50) * 32).astype(np.uint16)
EXIF = Image.Exif()
EXIF[0x0112] = 6
# What -> (content, the pixels that it holds)
ODD: dict[str, tuple[bytes, np.ndarray | None]] = {
    "cmyk.jpg": (coded(Image.fromarray(pixels(2)).convert("CMYK")), None),
    "gray.jpg": (coded(Image.fromarray(pixels(3)).convert("L")), None),
    "progressive.jpg": (coded(pixels(4), progressive=True), None),
    "deep.png": (coded(Image.fromarray(DEEP), "PNG"), np.repeat((DEEP / 257).round()[..., None], 3, axis=2)),
    "rotated.jpg": (coded(pixels(5), exif=EXIF), None),
    "dot.jpg": (coded(Image.new("RGB", (1, 1), (9, 8, 7))), None),
    "with blank.jpg": (coded(pixels(6)), None),
    "quote'\".png": (coded(pixels(7), "PNG"), pixels(7).astype(float)),
    "new\nline.png": (coded(pixels(8), "PNG"), pixels(8).astype(float)),
    "größe.png": (coded(pixels(9), "PNG"), pixels(9).astype(float)),
}


@pytest.fixture(params=["torchvision", "dali"])
def loader(request) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


def write(root: Path, files: dict[str, bytes]) -> Path:
    root.mkdir()
    for name, content in files.items():
        (root / name).write_bytes(content)
    for i in range(GOOD):
        (root / f"good_{i:02d}.png").write_bytes(coded(pixels(100 + i), "PNG"))
    return root


def scan(root: Path | str) -> ImageIndex:
    return open_source(str(root), ScanOptions(max_pixels=LIMIT))


def batches(index: ImageIndex, loader: str, **keys) -> ImageBatches:
    cfg = DataConfig(source=index.source, crop_size=SIDE, loader=loader, crop_scale=(0.5, 1.0), max_bad_share=0.6, max_bad=50)
    settings = {"rank": 0, "world_size": 1, "start_step": 0} | keys
    share = BATCH // settings["world_size"]
    return ImageBatches(cfg, index, seed=0, batch_size=BATCH, micro_batch=share, accumulation=1, device="cpu", **settings)


def run(index: ImageIndex, loader: str, steps: int = STEPS, **keys) -> tuple[torch.Tensor, dict[int, str]]:
    stream = batches(index, loader, **keys)
    try:
        return torch.stack([next(stream) for _ in range(steps)]), stream.found
    finally:
        stream.close()


def bad_by_name(index: ImageIndex) -> dict[str, str]:
    return {os.fsdecode(index.name(position)): reason for position, reason in index.bad.items()}


def test_the_scan_names_what_headers_tell_and_the_check_the_rest(tmp_path, caplog):
    root = write(tmp_path / "images", {name: content for name, (content, _, _) in BAD.items()})
    (root / "loop").symlink_to(root)
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (root / "gone.jpg").symlink_to(root / "nothing")
    os.mkfifo(root / "pipe.jpg")
    found = bad_by_name(scan(root))
    others = {"self.jpg": "symbolic links", "gone.jpg": "No such file", "pipe.jpg": "not a regular file"}
    expected = {name: early for name, (_, early, _) in BAD.items() if early} | others
    assert found.keys() == expected.keys()
    assert all(expected[name] in reason for name, reason in found.items()), found
    caplog.clear()
    with caplog.at_level("INFO"):
        assert main(["data", "check", str(root), "--max-pixels", str(LIMIT), "--threads", "2"]) == 1
    late = {name: reason for name, (_, _, reason) in BAD.items()} | others
    for name, reason in late.items():
        assert any(name in line and reason in line for line in caplog.text.splitlines()), (name, caplog.text)
    fixed = tmp_path / "fixed.index"
    arguments = ["data", "check", str(root), "--max-pixels", str(LIMIT), "--fix-index", str(fixed)]
    assert main(arguments) == 0
    index = open_source(str(fixed))
    assert len(index) == GOOD and not index.bad and all(index.name(i).startswith(b"good_") for i in range(GOOD))


@pytest.mark.skipif(os.name != "posix", reason="permissions")
def test_a_file_without_permission_is_named(tmp_path, loader, monkeypatch):
    root = write(tmp_path / "images", {})
    index = scan(root)
    opened = os.open

    def refuse(path, *rest, **keys):  # as root, who runs tests in containers, every file can be read
        if os.fspath(path).endswith(b"good_03.png" if isinstance(path, bytes) else "good_03.png"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return opened(path, *rest, **keys)

    monkeypatch.setattr(os, "open", refuse)
    assert bad_by_name(scan(root)) == {"good_03.png": "Permission denied"}
    assert run(index, loader)[1] == {3: "Permission denied"}


def test_only_the_bad_samples_differ_from_a_clean_run(tmp_path, loader):
    """Bad before the start: they keep their place, so the order and all other pixels are those of a clean run."""
    early = {name: content for name, (content, found, _) in BAD.items() if found}
    clean = write(tmp_path / "clean", {name: coded(pixels(50), "PNG") for name in early})
    spoilt = write(tmp_path / "spoilt", early)
    index = scan(spoilt)
    assert len(index) == len(scan(clean)) and len(index.bad) == len(early)
    ours, found = run(index, loader)
    theirs, _ = run(scan(clean), loader)
    assert found == {}
    which = sample_indices(np.arange(STEPS * BATCH), len(index), 0)
    differ = (ours != theirs).flatten(2).any(dim=2).flatten().numpy()
    assert np.array_equal(differ, np.isin(which, list(index.bad)))
    # every rank comes to the same, and so does a restart
    halves = [run(index, loader, rank=rank, world_size=2)[0] for rank in (0, 1)]
    assert torch.equal(torch.cat(halves, dim=1), ours)
    assert torch.equal(run(index, loader, steps=1, start_step=STEPS - 1)[0][0], ours[-1])


def test_odd_but_good_images_are_decoded_right(tmp_path, loader):
    root = tmp_path / "images"
    root.mkdir()
    for name, (content, _) in ODD.items():
        (root / name).write_bytes(content)
    index = scan(root)
    assert not index.bad
    whole = DataConfig(source=index.source, crop_size=SIDE, loader=loader, crop_scale=(1.0, 1.0), crop_ratio=(0.01, 100.0))
    count = len(index)
    stream = ImageBatches(
        whole, index, seed=0, batch_size=count, micro_batch=count, rank=0, world_size=1, accumulation=1, start_step=0,
        device="cpu",
    )  # fmt: skip
    images = next(stream)
    stream.close()
    assert stream.found == {}
    plan = SamplePlan(whole, index, seed=0, share=Share(rank=0, world_size=1, micro_batch=count, accumulation=1))
    samples = plan.samples(0)
    for position, window, ours in zip(samples.indices.tolist(), samples.windows.tolist(), images, strict=True):
        content, expected = ODD[os.fsdecode(index.name(position))]
        if expected is None:
            expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(float)
        top, left, height, width = window
        cut = expected[top : top + height, left : left + width].round().astype(np.uint8)
        cut = np.asarray(Image.fromarray(cut).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(float)
        assert np.abs(ours.numpy() - cut).mean() <= 0.6, index.paths[position]


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_transient_error_is_tried_again_and_never_counts(tmp_path, loader, monkeypatch, code, caplog):
    root = write(tmp_path / "images", {})
    index = scan(root)
    clean, _ = run(index, loader)
    monkeypatch.setattr(storage, "_PAUSES", (0.001, 0.001))
    attempts: dict[bytes, int] = {}
    opened: Callable = os.open

    def stumble(path, *rest, **keys):
        if isinstance(path, bytes) and path.endswith(b".png"):
            attempts[path] = attempts.get(path, 0) + 1
            if attempts[path] < 4 or (path.endswith(b"good_05.png") and attempts[path] < 40):
                raise OSError(code, os.strerror(code), path)
        return opened(path, *rest, **keys)

    monkeypatch.setattr(os, "open", stumble)
    images, found = run(index, loader)
    assert found == {} and "trying again" in caplog.text and max(attempts.values()) >= 40
    assert torch.equal(images, clean)


def test_a_resumed_run_honours_what_was_found_before(tmp_path, loader):
    root = write(tmp_path / "images", {})
    index = scan(root)
    os.rename(root / "good_04.png", tmp_path / "aside.png")
    before, found = run(index, loader)
    assert list(found) == [4]
    os.rename(tmp_path / "aside.png", root / "good_04.png")  # it came back: the order of the run must not change
    again, nothing = run(index, loader, bad=found)
    assert nothing == {} and torch.equal(again, before)
    assert not torch.equal(run(index, loader)[0], before)


def test_bad_samples_are_agreed_written_once_and_limited(tmp_path, monkeypatch):
    """One process; `decide` stands for another rank that found more. Ranks: tests/dist."""
    from ijepa_ds.training import bad_samples

    index = scan(write(tmp_path / "images", {"text.jpg": b"hello"}))
    cfg = DataConfig(source=index.source, max_bad=2)  # one more is known since the scan

    class Batches:
        found = {2: "ours"}
        learned: dict[int, str] = {}

        def add_bad(self, bad):
            self.learned |= bad

    def decided(value, choose):
        return choose([value, {3: "theirs"}])

    monkeypatch.setattr(bad_samples, "decide", decided)
    bad = bad_samples.BadSamples(cfg, index, tmp_path, 0, {})
    assert bad.new(Batches()) == 1
    bad.agree(Batches())
    assert bad.new(Batches()) == 0
    assert len(bad) == 3 and Batches.learned == {2: "ours", 3: "theirs"}
    manifest = json.loads(json.dumps({"bad_samples": bad.rows()}))
    again = bad_samples.BadSamples(cfg, index, tmp_path, 0, bad_samples.found_before(manifest))
    assert again.found == bad.found
    rows = [json.loads(line) for line in (tmp_path / bad_samples.FILE).read_text().splitlines()]
    assert [(row["index"], row["reason"]) for row in rows][1:] == [(2, "ours"), (3, "theirs")]
    assert rows[0]["path"].endswith("text.jpg") and "not a JPEG" in rows[0]["reason"]
    Batches.found = {5: "one more"}
    with pytest.raises(
        ValueError,
        match=r"(?s)4 images.*more than data\.max_bad = 2 \(3 found.*ours.*theirs.*one more.*text\.jpg",
    ):
        again.agree(Batches())
