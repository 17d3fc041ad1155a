"""`ijepa-ds data stats`: counts, moments and percentiles against numpy, duplicates, kinds of files, damaged images."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.data import statistics
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.statistics import measure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noise of several sizes and modes in two classes, a black image, and one that is there three times."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            size = (10 + 4 * number, 30)
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8)).save(root / "dog" / "gray.png")
    Image.fromarray(rng.integers(0, 256, (20, 20, 4), dtype=np.uint8), "RGBA").save(root / "dog" / "rgba.png")
    Image.new("RGB", (16, 16), (3, 3, 3)).save(root / "dog" / "black.png")
    for name in ("x", "y"):
        (root / "cat" / f"{name}.png").write_bytes((root / "dog" / "2.png").read_bytes())
    return root


def test_sums_are_numpys(folder: Path) -> None:
    index = open_source(str(folder), ScanOptions())
    found = measure(index, 0, 0, workers=1, max_pixels=10**6, progress=False)
    images = [np.asarray(Image.open(path).convert("RGB"), np.float64).reshape(-1, 3) / 255 for path in index.paths]
    assert found.images == len(images) == 17
    mean = np.mean([image.mean(0) for image in images], axis=0)  # every image has the same weight
    second = np.mean([(image**2).mean(0) for image in images], axis=0)
    np.testing.assert_allclose(found.mean(), mean)
    np.testing.assert_allclose(found.deviation(), np.sqrt(second - mean**2))
    weights = np.concatenate([np.full(len(image), 1 / len(image)) for image in images])
    values = np.rint(255 * np.concatenate(images)[:, 0])
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    expected = [values[order][np.searchsorted(share, p / 100 - 1e-12)] for p in (5, 50, 95)]
    np.testing.assert_allclose(found.percentiles((5, 50, 95))[0], expected, atol=1)
    assert [index.paths[i].rpartition("/")[2] for i in found.constant] == ["black.png"]
    assert [[index.paths[i].rpartition("/")[2] for i in group] for group in found.duplicates()] == [["x.png", "y.png", "2.png"]]
    assert found.kinds == {(3, 8): 15, (1, 8): 1, (4, 8): 1}


def test_processes_and_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK", 6)  # three tasks
    index = open_source(str(folder), ScanOptions())
    one = measure(index, 0, 0, workers=1, max_pixels=10**6, progress=False)
    two = measure(index, 0, 0, workers=2, max_pixels=10**6, progress=False)
    np.testing.assert_allclose(two.values, one.values)
    assert two.content == one.content and two.kinds == one.kinds and two.constant == one.constant
    few = measure(index, 5, 3, workers=1, max_pixels=10**6, progress=False)
    assert few.images == 5
    again = measure(index, 5, 3, workers=1, max_pixels=10**6, progress=False)
    assert few.content == again.content != measure(index, 5, 4, workers=1, max_pixels=10**6, progress=False).content


def test_the_verb(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "dog" / "5.png").read_bytes()
    (folder / "dog" / "5.png").write_bytes(whole[:200] + bytes(50) + whole[250:])  # its header is good
    out = tmp_path / "out"
    assert cli.main(["data", "stats", str(folder), "--out", str(out), "--workers", "1"]) == 0
    facts = json.loads((out / "stats.json").read_text())
    assert facts["images"] == 17 and facts["unreadable"] == 1 and facts["looked_at"] == 16
    assert facts["classes"] == {"cat": 8, "dog": 9} and facts["duplicates"] == 2 and facts["constant"] == 1
    assert facts["width"] == {"smallest": 16.0, "median": 30.0, "largest": 30.0}
    assert len(facts["mean"]) == 3 and set(facts["percentiles"]) == {"1", "5", "25", "50", "75", "95", "99"}
    with Image.open(out / "stats.png") as picture:
        assert picture.width == 1800 and picture.height > 1000


def test_nothing_readable(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "x.png")
    content = (tmp_path / "a" / "x.png").read_bytes()
    (tmp_path / "a" / "x.png").write_bytes(content[:45] + bytes(len(content) - 57) + content[-12:])
    assert cli.main(["data", "stats", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "none of the images looked at can be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_channels_are_measured_in_the_numbers_of_the_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "images"
    root.mkdir()
    arrays = [rng.integers(100, 4000, (20 + i, 30, 2)).astype(np.float32) + [0, 1000] for i in range(8)]
    for number, array in enumerate(arrays):
        array = array.astype(np.float32)
        array[:5, :, 1] = np.nan
        arrays[number] = array
        np.save(root / f"{number}.npy", array)
    np.save(root / "odd.npy", np.zeros((20, 20), np.float32))
    given = ["data", "stats", str(root), "--out", str(tmp_path / "o"), "--workers", "1"]
    with caplog.at_level(logging.INFO, "ijepa_ds"):
        assert cli.main([*given, "--arrays", "hwc"]) == 0
    facts = json.loads((tmp_path / "o" / "stats.json").read_text())
    low = np.min([np.nanmin(a, axis=(0, 1)) for a in arrays], axis=0)
    high = np.max([np.nanmax(a, axis=(0, 1)) for a in arrays], axis=0)
    scaled = [(a.astype(np.float64) - low) / (high - low) for a in arrays]
    mean = np.mean([np.nanmean(a, axis=(0, 1)) for a in scaled], axis=0)
    second = np.mean([np.nanmean(a**2, axis=(0, 1)) for a in scaled], axis=0)
    np.testing.assert_allclose(facts["mean"], mean, rtol=1e-4)
    np.testing.assert_allclose(facts["std"], np.sqrt(second - mean**2), rtol=1e-4)
    np.testing.assert_allclose([facts["offset"], facts["scale"]], [low, high])
    np.testing.assert_allclose(facts["without_data"], [0, np.mean([5 / len(a) for a in arrays])], rtol=1e-4)
    assert facts["looked_at"] == 8 and facts["unreadable"] == 1 and facts["kinds"] == [{"channels": 2, "bits": 32, "images": 8}]
    points = np.concatenate([a[..., 0].ravel() for a in arrays])
    assert abs(facts["clipped_scale"][0] - np.percentile(points, 99)) < 60 and (tmp_path / "o" / "stats.png").exists()
    told = caplog.text
    assert "odd.npy" in told and "1 channel of float32, but most images of the source have 2" in told
    assert "model:\n  channels: 2\ndata:\n  offset: [" in told and "outside: clip" in told


def test_arrays_of_bytes_count_as_training_reads_them(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(0), tmp_path / "images"
    root.mkdir()
    arrays = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(3)]
    for number, array in enumerate(arrays):
        np.save(root / f"{number}.npy", array.transpose(2, 0, 1))
    assert cli.main(["data", "stats", str(root), "--out", str(tmp_path / "o"), "--arrays", "chw", "--workers", "1"]) == 0
    facts = json.loads((tmp_path / "o" / "stats.json").read_text())
    np.testing.assert_allclose(facts["mean"], np.mean(arrays, axis=(0, 1, 2)) / 255, atol=1e-4)
    assert facts["unreadable"] == 0 and facts["kinds"] == [{"channels": 3, "bits": 8, "images": 3}]


def test_lines_to_paste_are_accepted_for_small_and_constant_values(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    narrow = [rng.integers(100, 141, (20, 20, 2)).astype(np.uint16) for _ in range(4)]
    constant = [np.dstack([rng.random((20, 20)), np.zeros((20, 20))]).astype(np.float32) for _ in range(4)]
    for name, arrays in (("narrow", narrow), ("constant", constant)):
        (tmp_path / name).mkdir()
        for number, array in enumerate(arrays):
            np.save(tmp_path / name / f"{number}.npy", array)
        given = ["data", "stats", str(tmp_path / name), "--out", str(tmp_path / "o"), "--workers", "1", "--arrays", "hwc"]
        caplog.clear()
        with caplog.at_level(logging.INFO, "ijepa_ds"):
            assert cli.main(given) == 0
        pasted = yaml.safe_load(
            caplog.text[caplog.text.index("model:\n  channels: 2") :].split("# or from")[0].split("\nINFO")[0]
        )
        data = pasted["data"]
        assert all(high > data["offset"][0] for high in data["scale"]) and min(data["std"]) > 0
        if name == "narrow":
            np.testing.assert_allclose(data["std"], np.std(narrow, axis=(0, 1, 2)) / 65535, rtol=1e-3)
