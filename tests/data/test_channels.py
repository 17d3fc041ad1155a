"""Images of other channels and depths: the same samples as RGB, the right numbers, and refusals that name file and page."""

import io
import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.config import DataConfig
from ijepa_ds.data.forms import with_one_form
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.pillow import decode
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import normalize
from ijepa_ds.data.values import Values
from ijepa_ds.errors import ContentError, UserError
from tests.cases.making import tar_of
from tests.data.parquet_cases import write as write_parquet

imagecodecs, tifffile = pytest.importorskip("imagecodecs"), pytest.importorskip("tifffile")
SIDE, BATCH, COUNT = 16, 4, 10


def numbers(seed: int, channels: int, most: int = 65535, height: int = 40, width: int = 52) -> np.ndarray:
    """A smooth image, uint16 [H, W, C]."""
    coarse = np.random.default_rng(seed).random((5, 5, channels)).astype(np.float32)
    planes = [
        np.asarray(Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BILINEAR)) for c in range(channels)
    ]
    return np.rint(np.stack(planes, axis=-1) * most).astype(np.uint16)


def write(path: Path, array: np.ndarray) -> None:
    """In the format of the path's ending; `.chw.npy` stores channels first."""
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(array if array.shape[2] > 1 else array[..., 0]))
    elif path.suffix == ".tif":
        kind = {"planarconfig": "separate"} if "separate" in path.name else {"planarconfig": "contig"}
        data = np.moveaxis(array, -1, 0) if "separate" in path.name else array
        kind = kind if array.shape[2] > 1 else {}
        tile = (16, 32) if "tile" in path.name else None
        data = array[..., 0] if array.shape[2] == 1 else data
        compression = "lzw" if "lzw" in path.name else None
        tifffile.imwrite(
            path, data, photometric="minisblack", tile=tile, compression=compression, metadata=None,
            rowsperstrip=None if tile else 7, **kind,
        )  # fmt: skip
    elif path.suffix == ".npz":
        np.savez_compressed(path, array)
    else:
        np.save(path, np.moveaxis(array, -1, 0) if ".chw" in path.name else array)


def folder(root: Path, pattern: str, channels: int, count: int = COUNT) -> Path:
    root.mkdir()
    for i in range(count):
        write(root / f"{i:02d}{pattern}", numbers(i, channels, height=40 + 3 * i))
    return root


def config(source: Path, number: int, **keys) -> DataConfig:
    given = {"mean": (0.5,) * number, "std": (0.25,) * number, "scale": (65535.0,), "horizontal_flip": True}
    return DataConfig(source=str(source), crop_size=SIDE, **(given | keys))


def batches(cfg: DataConfig, *, rank=0, world_size=1, accumulation=1, start_step=0, index=None) -> ImageBatches:
    index = open_source(cfg.source, ScanOptions.of(cfg)) if index is None else index
    return ImageBatches(
        cfg, index, seed=3, batch_size=BATCH, micro_batch=BATCH // world_size // accumulation, rank=rank,
        world_size=world_size, accumulation=accumulation, start_step=start_step, device="cpu",
    )  # fmt: skip


def first(cfg: DataConfig, steps: int = 3, **share) -> torch.Tensor:
    loader = batches(cfg, **share)
    try:
        return torch.cat([next(loader) for _ in range(steps)])
    finally:
        loader.close()


def expected(cfg: DataConfig, arrays: list[np.ndarray], steps: int = 3) -> torch.Tensor:
    """The same samples, cut out of arrays [H, W, C] in 0 .. 1 with torch's resize."""
    index = open_source(cfg.source, ScanOptions.of(cfg))
    plan = SamplePlan(cfg, index, seed=3, share=Share(rank=0, world_size=1, micro_batch=BATCH, accumulation=1))
    made = []
    for step in range(steps):
        samples = plan.samples(step)
        for at, (top, left, height, width), flip in zip(samples.indices, samples.windows, samples.flips, strict=True):
            window = torch.from_numpy(arrays[at][top : top + height, left : left + width].astype(np.float32))
            crop = torch.nn.functional.interpolate(
                window.permute(2, 0, 1)[None], (SIDE, SIDE), mode="bilinear", antialias=True
            )[0].permute(1, 2, 0)
            made.append(crop.flip(1) if flip else crop)
    return torch.stack(made)


@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize(
    "pattern", [".png", ".tif", ".lzw.tif", ".tile.tif", ".tile.separate.tif", ".separate.lzw.tif", ".npy", ".chw.npy", ".npz"]
)
def test_every_format_gives_the_same_samples(tmp_path: Path, pattern: str, channels: int):
    if pattern == ".png" and channels == 12:
        pytest.skip("a PNG has four channels at most")
    arrays = "chw" if ".chw" in pattern else "hwc"
    cfg = config(folder(tmp_path / "a", pattern, channels), channels, arrays=arrays)
    found = first(cfg)
    assert found.shape == (3 * BATCH, SIDE, SIDE, channels) and found.dtype == torch.float32
    right = expected(cfg, [numbers(i, channels, height=40 + 3 * i) / 65535 for i in range(COUNT)])
    assert (found - right).abs().max() < 1e-5


def test_channels_are_chosen_and_ordered(tmp_path: Path):
    source = folder(tmp_path / "a", ".tif", 5)
    right = expected(config(source, 5), [numbers(i, 5, height=40 + 3 * i)[..., [4, 0]] / 65535 for i in range(COUNT)])
    assert (first(config(source, 2, channels=(4, 0))) - right).abs().max() < 1e-5


def test_ranges_of_channels_and_percentiles(tmp_path: Path):
    source = folder(tmp_path / "a", ".tif", 2)
    arrays = [numbers(i, 2, height=40 + 3 * i).astype(np.float64) for i in range(COUNT)]
    low, high = np.array([10000.0, 20000.0]), np.array([30000.0, 60000.0])
    cfg = config(source, 2, offset=tuple(low), scale=tuple(high), outside="clip")
    right = expected(cfg, [((array - low) / (high - low)).clip(0, 1) for array in arrays])
    assert (first(cfg) - right).abs().max() < 1e-5


def test_samples_do_not_depend_on_ranks_or_start(tmp_path: Path):
    cfg = config(folder(tmp_path / "a", ".tile.tif", 4), 4)
    whole = first(cfg, 4)
    halves = [first(cfg, 4, rank=rank, world_size=2) for rank in (0, 1)]
    joined = torch.cat([part.reshape(4, 2, SIDE, SIDE, 4) for part in halves], dim=1).flatten(0, 1)
    assert torch.equal(joined, whole)
    assert torch.equal(first(cfg, 2, start_step=2), whole[2 * BATCH :])
    assert torch.equal(first(replace(cfg, threads=3, readers=2), 4), whole)


def test_eight_bits_as_channels_equal_rgb(tmp_path: Path):
    root = tmp_path / "a"
    root.mkdir()
    for i in range(COUNT):
        Image.fromarray((numbers(i, 3) >> 8).astype(np.uint8)).save(root / f"{i}.png")
    plain = DataConfig(source=str(root), crop_size=SIDE, horizontal_flip=True, loader="torchvision")
    rgb, values = first(plain), first(replace(plain, scale=(255.0,)))
    assert rgb.dtype == torch.uint8 and (rgb / 255 - values).abs().max() <= 1.01 / 255  # Pillow rounds after each of two passes
    inputs = [normalize(part, plain.mean, plain.std, torch.float32) for part in (rgb, values)]
    assert (inputs[0] - inputs[1]).abs().max() < 1.01 / 255 / min(plain.std)


@pytest.mark.parametrize("loader", ["torchvision", "auto"])
def test_tiff_and_npy_of_8_bits_are_rgb_like_png(tmp_path: Path, loader: str):
    made = {}
    for pattern in (".png", ".tif", ".npy"):
        root = tmp_path / pattern
        root.mkdir()
        for i in range(COUNT):
            array = (numbers(i, 3 if i % 2 else 1) >> 8).astype(np.uint8)
            write(root / f"{i}{pattern}", array)
        made[pattern] = first(DataConfig(source=str(root), crop_size=SIDE, loader=loader, arrays="hwc"))
        assert made[pattern].dtype == torch.uint8
    assert (made[".tif"].int() - made[".png"].int()).abs().max() <= (0 if loader == "torchvision" else 2)
    assert torch.equal(made[".tif"], made[".npy"])


def test_gray_jpegs_stay_one_channel(tmp_path: Path):
    root = tmp_path / "a"
    root.mkdir()
    for i in range(COUNT):
        Image.fromarray((numbers(i, 1)[..., 0] >> 8).astype(np.uint8)).save(root / f"{i}.jpg", quality=95)
    cfg = config(root, 1, scale=None)
    right = expected(cfg, [np.asarray(Image.open(root / f"{i}.jpg"))[..., None] / 255 for i in range(COUNT)])
    assert (first(cfg) - right).abs().max() < 1e-5


def test_no_data_is_filled_with_the_mean_and_counted(tmp_path: Path, caplog):
    root = tmp_path / "a"
    root.mkdir()
    for i in range(COUNT):
        array = numbers(i, 2).astype(np.float32) / 65535
        array[:, :26, 0], array[:, :26, 1] = np.nan, -9999.0
        np.save(root / f"{i}.npy", array)
    cfg = config(
        root, 2, mean=(0.25, 0.75), scale=(1.0,), nodata=-9999.0, arrays="hwc", crop_scale=(1.0, 1.0), horizontal_flip=False
    )
    with caplog.at_level(logging.WARNING):
        found = first(replace(cfg, crop_ratio=(1.3, 1.3)))
    assert (found[:, :, 0, 0] == 0.25).all() and (found[:, :, 0, 1] == 0.75).all() and (found[:, :, -1] != 0.25).all()
    assert "samples with values without data, filled with data.mean: 10, such as" in caplog.text


def test_a_tiff_says_what_no_data_is(tmp_path: Path):
    root = tmp_path / "a"
    root.mkdir()
    for i in range(4):
        array = numbers(i, 1)[..., 0].astype(np.float32)
        array[:20] = -1.0
        tifffile.imwrite(root / f"{i}.tif", array, extratags=[(42113, "s", 0, "-1", True)])
    found = first(config(root, 1, mean=(0.125,), crop_scale=(1.0, 1.0), crop_ratio=(1.3, 1.3)), 1)
    assert (found[:, 0] == 0.125).all()


def refused(root: Path, cfg: DataConfig) -> str:
    with pytest.raises(UserError) as error:
        first(replace(cfg, source=str(root)))
    return str(error.value)


def test_a_source_that_does_not_fit_is_refused_with_the_keys(tmp_path: Path):
    four = folder(tmp_path / "four", ".tif", 4)
    assert "the images have 4 channels of uint16, but model.channels is 3" in refused(four, config(four, 3))
    assert "names channel 4, but the images have 4 channels of uint16" in refused(four, config(four, 1, channels=(4,)))
    assert "set data.scale to the value that becomes 1, such as 65535" in refused(four, config(four, 4, scale=None))
    text = refused(four, DataConfig(source=str(four), crop_size=SIDE))
    assert "00.tif" in text and "4 channels of uint16: model.channels, data.channels and data.scale" in text
    three = folder(tmp_path / "three", ".npy", 3)
    assert "no readable image" in refused(three, config(three, 3)) and "data.arrays" in refused(three, config(three, 3))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda path: tifffile.imwrite(path, numbers(0, 3)), "3 channels of uint16, but most images of the source have 4"),
        (lambda path: write(path, (numbers(0, 4) >> 8).astype(np.uint8)), "4 channels of uint8, but most"),
        (lambda path: write(path, numbers(0, 4).astype(np.float32)), "4 channels of float32, but most"),
        (lambda path: tifffile.imwrite(path, np.stack([numbers(0, 4)] * 3), photometric="minisblack"), "page 2 of 120"),
        (
            lambda path: tifffile.imwrite(
                path, np.zeros((9, 9), np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)
            ),
            "page 1: a TIFF with a palette",
        ),
        (lambda path: tifffile.imwrite(path, np.zeros((9, 9), np.uint8), photometric="miniswhite"), "its zero is white"),
        (lambda path: (write(path, numbers(0, 4)), path.write_bytes(path.read_bytes()[:-900])), "truncated"),
        (lambda path: path.write_bytes(b"II*\0" + bytes(90)), "damaged"),
    ],
)  # fmt: skip
def test_odd_files_are_named_and_replaced(tmp_path: Path, made, reason: str):
    root = folder(tmp_path / "a", ".tif", 4)
    made(root / "05x.tif")
    index = open_source(str(root), ScanOptions.of(config(root, 4)))
    assert len(index) == COUNT + 1 and len(index.bad) == 1
    ((name, text),) = index.list_bad()
    assert name.endswith("05x.tif") and reason in text
    assert first(config(root, 4)).isfinite().all()


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((9, 9, 4, 1), np.float32), "shape [9, 9, 4, 1]"),
        (np.zeros((9, 9, 4), bool), "bool values"),
        (np.zeros((9, 9, 4), complex), "complex128 values"),
        (np.array([[None] * 4] * 4), "Python objects"),
    ],
)
def test_odd_arrays_are_named(tmp_path: Path, array: np.ndarray, reason: str):
    root = folder(tmp_path / "a", ".npy", 4)
    np.save(root / "03x.npy", array)
    np.savez(root / "04x.npz", a=numbers(0, 4), b=numbers(1, 4))
    bad = dict(open_source(str(root), ScanOptions.of(config(root, 4, arrays="hwc"))).list_bad())
    assert len(bad) == 2 and reason in bad[str(root / "03x.npy")]
    assert "2 arrays in one file (a.npy, b.npy); expected one" in bad[str(root / "04x.npz")]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.5), (-0.5, 1.0), (0.0, np.inf)])
def test_values_outside_the_declared_range_count_against_max_bad(tmp_path: Path, low: float, high: float):
    root = tmp_path / "a"
    root.mkdir()
    for i in range(COUNT):
        array = numbers(i, 2).astype(np.float32) / 65535
        if i == 7:
            array[::2, ::2, 1], array[1::2, ::2, 1] = low, high
        np.save(root / f"{i:02d}.npy", array)
    cfg = config(root, 2, scale=(1.0,), arrays="hwc")
    loader = batches(cfg)
    for _ in range(4):
        assert next(loader).isfinite().all()
    (reason,) = loader.found.values()
    loader.close()
    assert ("channel 1 has infinite values" if high == np.inf else "channel 1 has values from") in reason
    assert "07.npy" in refused(root, replace(cfg, max_bad=0)) and "data.max_bad" in refused(root, replace(cfg, max_bad=0))


def test_data_check_reads_images_as_a_run_does(tmp_path: Path, caplog):
    """A value outside the range, and a file of another depth, are named; without the run's keys both can be decoded."""
    for i in range(COUNT):
        array = numbers(i, 2).astype(np.float32) / 65535
        array[3, 4, 1] = 1.5 if i == 7 else np.nan if i == 3 else 0.5
        (tmp_path / "a").mkdir(exist_ok=True)
        np.save(tmp_path / "a" / f"{i:02d}.npy", array.astype(np.float64) if i == 5 else array)
    (tmp_path / "run.yaml").write_text(f"""
run: {{dir: {tmp_path / "run"}}}
data: {{source: x, crop_size: 16, mean: [0.5, 0.5], std: [0.2, 0.2], scale: [1.0], arrays: hwc}}
model: {{name: tiny, width: 32, depth: 2, heads: 2, patch_size: 4, channels: 2, predictor: {{depth: 1, width: 16, heads: 2}}}}
masks: {{min_keep: 0}}
optimization: {{batch_size: 8, steps: 20, warmup_steps: 2}}
""")
    caplog.set_level(logging.INFO)
    assert cli.main(["data", "check", str(tmp_path / "a"), "--arrays", "hwc"]) == 0
    caplog.clear()
    assert cli.main(["data", "check", str(tmp_path / "a"), "--config", str(tmp_path / "run.yaml")]) == 1
    lines = caplog.text.split("\n")
    assert any("07.npy" in line and "channel 1 has values from" in line for line in lines)
    assert any("05.npy" in line and "2 channels of float64, but most" in line for line in lines)
    assert "10 images, 2 of them cannot be read" in caplog.text


def test_a_mixture_of_depths_is_found_across_formats(tmp_path: Path):
    root = folder(tmp_path / "a", ".png", 1)
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(root / "x.png")
    Image.fromarray(np.zeros((20, 20), np.uint8)).convert("P").save(root / "y.png")
    bad = dict(open_source(str(root), ScanOptions.of(config(root, 1))).list_bad())
    assert "1 channel of uint8, but most" in bad[str(root / "x.png")] and "a palette" in bad[str(root / "y.png")]


def test_dicom_without_pydicom_says_what_to_install(tmp_path: Path, monkeypatch):
    root = folder(tmp_path / "a", ".png", 1)
    (root / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    bad = dict(open_source(str(root), ScanOptions.of(config(root, 1))).list_bad())
    assert "pip install 'ijepa_ds[dicom]'" in bad[str(root / "x.dcm")]


def test_a_large_tile_costs_its_window(tmp_path: Path):
    """Of a tiled file in a folder only the tiles under the window are read."""
    root = tmp_path / "a"
    root.mkdir()
    array = np.zeros((2048, 2048), np.uint16)
    array[300:332, 700:764] = 7
    tifffile.imwrite(root / "0.tif", array, tile=(64, 64))
    cfg = config(root, 1)
    plan = SamplePlan(
        cfg,
        open_source(str(root), ScanOptions.of(cfg)),
        seed=0,
        share=Share(rank=0, world_size=1, micro_batch=1, accumulation=1),
    )
    read = []

    class Counting(io.FileIO):
        def readinto(self, buffer):
            read.append(len(buffer))
            return super().readinto(buffer)

    window = np.array([300, 700, 32, 64], np.int32)
    assert (plan.read(0, window).pixels == 7).all()
    from ijepa_ds.data.rasters import read_window

    with io.BufferedReader(Counting(root / "0.tif")) as file:
        read_window(file, None, window)
    assert sum(read) < 200_000 < (root / "0.tif").stat().st_size / 30


def test_an_index_keeps_the_form(tmp_path: Path):
    cfg = config(folder(tmp_path / "a", ".tif", 4), 4)
    index = open_source(cfg.source, ScanOptions.of(cfg))
    index.save(tmp_path / "a.index")
    again = open_source(str(tmp_path / "a.index"), ScanOptions.of(cfg))
    assert torch.equal(first(replace(cfg, source=str(tmp_path / "a.index"))), first(cfg))
    with pytest.raises(UserError, match="4 channels of uint16, but model.channels is 1"):
        with_one_form(again, Values.of(config(tmp_path / "a", 1)), "a")


def test_folder_tar_and_parquet_of_the_same_files_give_the_same_samples(tmp_path: Path):
    root = folder(tmp_path / "a", ".lzw.tif", 4)
    contents = {path.name: path.read_bytes() for path in sorted(root.iterdir())}
    (tmp_path / "a.tar").write_bytes(tar_of(contents))
    write_parquet(tmp_path / "a.parquet", list(contents.values()), names=list(contents))
    made = [first(config(tmp_path / name, 4)) for name in ("a", "a.tar", "a.parquet")]
    assert torch.equal(made[1], made[0]) and torch.equal(made[2], made[0])


def test_a_bound_is_compared_as_the_file_stores_it():
    values = Values(count=1, high=(0.1,), fill=(0.5,))
    scaled, filled = values.scaled(np.full((2, 2), 0.1, np.float32), 0)
    assert (scaled == 1).all() and filled == 0
    with pytest.raises(ContentError, match="channel 0 has values from 0.11"):
        values.scaled(np.full((2, 2), 0.11, np.float32), 0)
    exact = Values(count=1, low=(-(2.0**31),), high=(2.0**31 - 1,), fill=(0.5,))
    ends = exact.scaled(np.array([[-(2**31), 2**31 - 1]], np.int32), 0)[0]
    assert ends.tolist() == [[0.0, 1.0]]


def test_jpeg_compressed_tiff_is_rgb_and_overviews_are_skipped(tmp_path: Path):
    array = (numbers(3, 3, height=64, width=64) >> 8).astype(np.uint8)
    jpeg = {"compression": "jpeg", "compressionargs": {"level": 95}, "tile": (32, 32)}
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", **jpeg)
    with tifffile.TiffWriter(tmp_path / "b.tif") as writer:
        writer.write(array, photometric="rgb")
        writer.write(array[::2, ::2].copy(), photometric="rgb", subfiletype=1)
    for name, most in (("a.tif", 1.5), ("b.tif", 0.0)):
        found = np.asarray(decode((tmp_path / name).read_bytes()))
        assert found.shape == array.shape and np.abs(found.astype(int) - array).mean() <= most
