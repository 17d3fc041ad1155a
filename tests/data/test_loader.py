"""The loaders: the same samples however the batch is shared, wherever it starts, whoever decodes."""

import logging
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds.config import DataConfig
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.decoder import choose_decoder
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.order import sample_indices
from ijepa_ds.data.sources import open_source
from tests.waiting import limit

BATCH, SIDE, COUNT = 8, 24, 22  # 22 images: a batch of 8 straddles two epochs


@pytest.fixture(params=["torchvision", "dali"])
def loader(request) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return request.param


def picture(seed: int, width: int, height: int) -> Image.Image:
    """Something smooth, like a photograph: JPEG noise would drown the comparison."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> ImageIndex:
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        picture(i, 30 + 3 * i, 90 - 2 * i).save(root / f"{i:02d}.jpg", quality=90)
    return open_source(str(root))


def config(folder: ImageIndex, loader: str, **keys) -> DataConfig:
    return DataConfig(source=folder.source, crop_size=SIDE, loader=loader, horizontal_flip=True, **keys)


def batches(cfg, folder, *, rank=0, world_size=1, accumulation=1, start_step=0, seed=0, batch=BATCH) -> ImageBatches:
    return ImageBatches(
        cfg, folder, seed=seed, batch_size=batch, micro_batch=batch // world_size // accumulation, rank=rank,
        world_size=world_size, accumulation=accumulation, start_step=start_step, device="cpu",
    )  # fmt: skip


def global_batches(cfg, folder, steps, *, world_size=1, accumulation=1, **keys) -> torch.Tensor:
    """All ranks' images put together: [steps, BATCH, S, S, 3]."""
    parts = []
    for rank in range(world_size):
        stream = batches(cfg, folder, rank=rank, world_size=world_size, accumulation=accumulation, **keys)
        micros = [next(stream) for _ in range(steps * accumulation)]
        stream.close()
        parts.append(torch.stack(micros).unflatten(0, (steps, accumulation)))
    return torch.stack(parts, dim=2).flatten(1, 3)  # [steps, accumulation, world_size, B, ...]


def test_global_batches_do_not_depend_on_ranks_micro_batches_or_threads(folder, loader):
    cfg = config(folder, loader)
    whole = global_batches(cfg, folder, 4)
    assert whole.shape == (4, BATCH, SIDE, SIDE, 3) and whole.dtype == torch.uint8
    for world_size, accumulation, threads, prefetch in (
        (2, 1, 1, 1),
        (4, 1, 2, 2),
        (2, 2, 1, 5),
        (1, 8, 3, 2),
    ):
        other = replace(cfg, threads=threads, prefetch=prefetch)
        shared = global_batches(other, folder, 4, world_size=world_size, accumulation=accumulation)
        assert torch.equal(whole, shared), (world_size, accumulation)


def test_a_start_at_step_s_is_the_run_from_step_s(folder, loader):
    cfg = config(folder, loader)
    whole = global_batches(cfg, folder, 5)
    assert torch.equal(whole[3:], global_batches(cfg, folder, 2, start_step=3, world_size=2, accumulation=2))
    assert not torch.equal(whole[:2], global_batches(cfg, folder, 2, seed=1))


def test_the_images_are_those_of_order_crop_and_flip(folder, loader):
    """Made again here from the definitions, over batches that straddle two epochs."""
    cfg = config(folder, loader)
    got = global_batches(cfg, folder, 4).flatten(0, 1)
    numbers = np.arange(4 * BATCH)
    indices = sample_indices(numbers, COUNT, 0)
    assert sorted(indices[:COUNT]) == list(range(COUNT))
    width, height = folder.sizes[indices].T
    windows = crop_windows(width, height, numbers, 0, cfg.crop_scale, cfg.crop_ratio)
    assert 5 < flips(numbers, 0).sum() < 27
    for i, (index, window, flip) in enumerate(zip(indices, windows, flips(numbers, 0), strict=True)):
        top, left, h, w = window.tolist()
        image = Image.open(folder.paths[int(index)]).crop((left, top, left + w, top + h))
        expected = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)).astype(int)
        expected = expected[:, ::-1] if flip else expected
        assert np.abs(got[i].numpy() - expected).mean() < 0.5, i


def test_dali_gives_the_pixels_of_pillow(folder):
    pytest.importorskip("nvidia.dali")
    ours, theirs = (global_batches(config(folder, name), folder, 4).float() for name in ("dali", "torchvision"))
    assert (ours - theirs).abs().mean() <= 0.25


def test_dali_gives_the_pixels_of_pillow_on_photographs(shared):
    pytest.importorskip("nvidia.dali")
    photographs = open_source(str(shared / "data" / "imagenet_sample"))
    pixels = []
    for name in ("dali", "torchvision"):
        cfg = DataConfig(source=photographs.source, crop_size=224, loader=name)
        pixels.append(global_batches(cfg, photographs, 2).float())
    assert (pixels[0] - pixels[1]).abs().mean() <= 0.25


def test_formats_that_both_must_read_alike(tmp_path):
    pytest.importorskip("nvidia.dali")
    source = picture(0, 60, 50)
    exif = Image.Exif()
    exif[0x0112] = 6
    source.save(tmp_path / "exif.jpg", exif=exif)
    source.save(tmp_path / "progressive.jpg", progressive=True)
    source.save(tmp_path / "subsampled.jpg", subsampling="4:2:0")
    source.convert("L").save(tmp_path / "gray.jpg")
    source.convert("CMYK").save(tmp_path / "cmyk.jpg")
    source.save(tmp_path / "rgb.png")
    source.convert("L").save(tmp_path / "gray.png")
    source.convert("P").save(tmp_path / "palette.png")
    source.convert("RGBA").save(tmp_path / "alpha.png")
    source.save(tmp_path / "a.webp", lossless=True)
    source.save(tmp_path / "a.bmp")
    source.save(tmp_path / "really_png.bmp", format="PNG")
    (tmp_path / "tail.jpg").write_bytes((tmp_path / "subsampled.jpg").read_bytes() + b"more")
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "dot.jpg")
    folder = open_source(str(tmp_path))
    count = len(folder)
    assert count == 14
    ours, theirs = (global_batches(config(folder, name), folder, 1, batch=count)[0] for name in ("dali", "torchvision"))
    indices = sample_indices(np.arange(count), count, 0)
    for i, (one, other) in enumerate(zip(ours.float(), theirs.float(), strict=True)):
        assert (one - other).abs().mean() <= 0.6, folder.paths[int(indices[i])]


def test_what_was_handed_out_is_not_written_again(folder, loader):
    stream = batches(config(folder, loader, prefetch=1), folder)
    kept = [next(stream) for _ in range(6)]
    copies = [images.clone() for images in kept]
    for _ in range(6):
        next(stream)
    stream.close()
    assert all(torch.equal(*pair) for pair in zip(kept, copies, strict=True))


def test_errors_of_the_thread_reach_the_caller_and_stay(folder, monkeypatch):
    stream_config = config(folder, "torchvision")
    calls = iter(range(100))

    def broken(*_):
        if next(calls) >= 3 * BATCH:
            raise ZeroDivisionError("from within")
        return np.zeros((SIDE, SIDE, 3), np.uint8)

    monkeypatch.setattr("ijepa_ds.data.vision.read_crop", broken)
    stream = batches(stream_config, folder)
    for _ in range(3):
        next(stream)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="from within"):
            next(stream)
    stream.close()


def test_closing_ends_the_thread_whatever_it_is_doing(folder, loader):
    before = set(threading.enumerate())
    for taken in (0, 1):
        stream = batches(config(folder, loader), folder)
        for _ in range(taken):
            next(stream)
        start = time.monotonic()
        stream.close()
        stream.close()
        assert time.monotonic() - start < limit(60)
        with pytest.raises(RuntimeError, match="closed"):
            next(stream)
    dropped = batches(config(folder, loader), folder)
    del dropped
    assert not [t for t in set(threading.enumerate()) - before if t.name == "images"]


def test_a_program_may_end_without_closing(folder, loader):
    program = (
        "import sys; from ijepa_ds.config import DataConfig; from ijepa_ds.data.sources import open_source\n"
        "from ijepa_ds.data.loader import ImageBatches\n"
        "cfg = DataConfig(source=sys.argv[1], crop_size=24, loader=sys.argv[2])\n"
        "stream = ImageBatches(cfg, open_source(cfg.source), seed=0, batch_size=8,\n"
        "    micro_batch=8, rank=0, world_size=1, accumulation=1, start_step=0, device='cpu')\n"
        "next(stream); raise SystemExit(5)\n"
    )
    command = [sys.executable, "-c", program, folder.source, loader]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=limit(600))
    assert (ended.returncode, ended.stderr) == (5, "")


def test_sizes_that_do_not_multiply_are_refused(folder):
    with pytest.raises(ValueError, match="global batch of 9"):
        ImageBatches(
            config(folder, "torchvision"), folder, seed=0, batch_size=9, micro_batch=4, rank=0, world_size=2,
            accumulation=1, start_step=0, device="cpu",
        )  # fmt: skip


def test_without_dali_auto_says_so_and_dali_refuses(folder, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ijepa_ds.data.dali", None)  # importing it raises ImportError
    with caplog.at_level(logging.WARNING):
        stream = batches(config(folder, "auto"), folder)
    stream.close()
    assert stream.backend == "torchvision" and "pip install nvidia-dali-cuda130" in caplog.text
    with pytest.raises(ValueError, match="pip install nvidia-dali-cuda130"):
        batches(config(folder, "dali"), folder)
    with pytest.raises(ValueError, match=r"data\.loader: 'opencv'"):
        batches(config(folder, "opencv"), folder)


def test_auto_takes_dali(folder):
    pytest.importorskip("nvidia.dali")
    stream = batches(config(folder, "auto"), folder)
    stream.close()
    assert stream.backend == "dali"


CPU, GPU = "cpu", "gpu"  # DALI calls the devices of operators so; "mixed" reads on the CPU and writes on the GPU
PLACES = {
    (None, "cpu"): {"ExternalSource": CPU, "ImageSlice": CPU},  # torch does the rest
    (0, "cpu"): {"ExternalSource": CPU, "ImageSlice": CPU, "Resize": GPU},
    (0, "mixed"): {"ExternalSource": CPU, "Image": GPU, "Slice": GPU, "Resize": GPU},
    (0, "mixed_roi"): {"ExternalSource": CPU, "ImageSlice": GPU, "Resize": GPU},
}


@pytest.mark.parametrize(("device_id", "decoder"), PLACES)
@pytest.mark.parametrize("flip", [True, False])
def test_every_operator_is_where_it_belongs(folder, flip, device_id, decoder):
    """Defined, not built: no GPU is needed to see which device each operator was given."""
    pytest.importorskip("nvidia.dali")
    from ijepa_ds.data.dali_pipeline import build_pipeline

    cfg = replace(config(folder, "dali"), horizontal_flip=flip)
    pipeline = build_pipeline(lambda info: (), cfg, 4, device_id=device_id, decoder=decoder)
    pipeline._build_graph()
    kinds = {}
    for op in pipeline._ops:
        for node in op.outputs:
            kinds[node.name.strip("_").rsplit("_", 1)[0]] = node.device
    expected = PLACES[device_id, decoder]
    assert kinds == expected | ({"Flip": GPU} if flip and device_id is not None else {})


def test_decoders_are_chosen_and_refused():
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert choose_decoder("auto", cpu) == choose_decoder("cpu", cpu) == choose_decoder("cpu", cuda) == "cpu"
    assert choose_decoder("auto", cuda) == choose_decoder("mixed", cuda) == "mixed"
    for decoder in ("mixed", "mixed_roi"):
        with pytest.raises(ValueError, match="decodes on a GPU, but training runs on cpu"):
            choose_decoder(decoder, cpu)


def test_windows_on_the_gpu_are_tried_in_another_process_first(caplog):
    """A machine without a GPU is one where the test fails: whole images are decoded, and that is said."""
    pytest.importorskip("nvidia.dali")
    if torch.cuda.is_available():
        pytest.skip("here the test may pass")
    assert choose_decoder("mixed_roi", torch.device("cuda", 0)) == "mixed"
    assert "mixed_roi fails its test on this GPU (exit code" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["cpu", "mixed", "mixed_roi"])
def test_batches_made_on_a_gpu_are_those_made_on_the_cpu(folder, decoder, capsys):
    expected = global_batches(config(folder, "torchvision"), folder, 6).flatten(0, 1)
    stream = ImageBatches(
        config(folder, "dali", decoder=decoder), folder, seed=0, batch_size=BATCH, micro_batch=BATCH, rank=0,
        world_size=1, accumulation=1, start_step=0, device="cuda",
    )  # fmt: skip
    images = torch.cat([next(stream) for _ in range(6)])
    begin = time.perf_counter()
    for _ in range(50):
        next(stream)
    torch.cuda.synchronize()
    with capsys.disabled():
        print(f"\ndecoder {decoder}: {50 * BATCH / (time.perf_counter() - begin):.0f} images/s of {SIDE} pixels")
    stream.close()
    assert images.device.type == "cuda"
    difference = (images.cpu().float() - expected.float()).abs().flatten(1).mean(dim=1)
    assert difference.max() < 2  # of 255: the GPU's JPEG decoder rounds in its own way
