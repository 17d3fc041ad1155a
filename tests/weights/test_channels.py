"""Encoders of other channels: evaluated, shown, exported, and started from RGB weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ijepa_ds import cli, load_encoder
from ijepa_ds.config import Config
from ijepa_ds.data.values import Values
from ijepa_ds.evals.folders import crop_batches, read_pair
from ijepa_ds.evals.run import ScanOptions
from ijepa_ds.evals.session import Session
from ijepa_ds.evals.settings import Settings
from ijepa_ds.weights import WeightsError, open_source, read_encoder
from ijepa_ds.weights.export import export
from ijepa_ds.weights.start import open_start
from tests.weights_cases import largest, small_config, write_run

tifffile = pytest.importorskip("tifffile")


def run_of(folder: Path, channels: int = 4, **data) -> Config:
    """A run of `channels` channels of float32 arrays from 0 to 10, with a checkpoint."""
    cfg = small_config(folder)
    given = {"mean": (0.4,) * channels, "std": (0.2,) * channels, "scale": (10.0,), "arrays": "hwc"}
    cfg = replace(cfg, data=replace(cfg.data, **(given | data)), model=replace(cfg.model, channels=channels))
    write_run(folder, cfg)
    return cfg


def arrays(root: Path, channels: int = 4, count: int = 6) -> Path:
    """Class folders of .npy files; a class is bright in one channel."""
    for label in range(2):
        (root / f"class{label}").mkdir(parents=True)
        for i in range(count):
            array = np.random.default_rng(i).random((50, 60, channels), dtype=np.float32) * 4
            array[..., label] += 5
            np.save(root / f"class{label}" / f"{i}.npy", array)
    return root


def batch(size: int = 48, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_features_of_an_evaluation_are_those_of_the_numbers(tmp_path: Path):
    cfg = run_of(tmp_path / "run")
    root = arrays(tmp_path / "a")
    encoder, facts = read_encoder(tmp_path / "run")
    assert facts.size.channels == 4
    pair = read_pair(str(root), str(root), ScanOptions(values=Values.of(cfg.data)))
    settings = Settings(size=48, mean=facts.mean, std=facts.std, batch_size=5, values=Values.of(cfg.data))
    found = Session(encoder, pair, settings).pooled("test")
    transform = facts.transform
    inputs = torch.stack([transform(np.load(str(path))) for path in pair.test.paths])
    assert inputs.shape == (12, 4, 48, 48) and inputs.max() <= (1 - 0.4) / 0.2 + 1e-5
    torch.testing.assert_close(found, encoder(inputs).mean(dim=1), rtol=1e-4, atol=1e-5)
    planes = [
        np.asarray(Image.fromarray(np.load(str(pair.test.paths[7]))[..., c]).resize((66, 55), Image.Resampling.BICUBIC))
        for c in range(4)
    ]
    middle = np.stack(planes, axis=-1)[4:52, 9:57] / 10
    torch.testing.assert_close(
        inputs[7], torch.from_numpy((middle.clip(0, 1) - 0.4) / 0.2).permute(2, 0, 1).float(), rtol=1e-4, atol=1e-4
    )
    crops = next(crop_batches(pair.train.paths, [0, 1], 48, 2, 1, seed=0, scale=(0.5, 1.0)))
    assert crops.shape == (2, 48, 48, 4) and crops.dtype == np.float32


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_eval_command(tmp_path: Path, task: str):
    run_of(tmp_path / "run")
    train, test = arrays(tmp_path / "a"), arrays(tmp_path / "b")
    given = ["--checkpoint", tmp_path / "run", "--train", train, "--test", test, "--out", tmp_path / "o", "--no-cache"]
    solver = ["--solver", "lbfgs"] if task == "linear" else ["--k", "3"]
    assert cli.main(["eval", task, *map(str, given), *solver, "--baseline", "pixels"]) == 0
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert result["settings"]["values"]["high"] == [10.0] and result["data"]["num_test"] == 12
    assert (tmp_path / "o" / "neighbours.png").exists() == (task == "knn")


def squares(root: Path, channels: int, count: int, seed: int) -> Path:
    """Class folders, scenes.json, masks and depths of uint16 images: a bright square in the last channel, of another size.

    The other channels are noise. A value without data (7) is in the first image.
    """
    rng, scenes = np.random.default_rng(seed), []
    for folder in ("images", "masks", "depth"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        label = i % 2
        array = rng.integers(1000, 3000, (48, 48, channels), dtype=np.uint16)
        top, left, side = 8 * int(rng.integers(0, 3)), 8 * int(rng.integers(0, 3)), 16 + 8 * label
        array[top : top + side, left : left + side, -1] = 40_000
        array[0, 0, 0] = 7 if i == 0 else 1000
        mask = np.zeros((48, 48), np.uint8)
        mask[top : top + side, left : left + side] = 1
        name = f"{i}.tif"
        planes = {"planarconfig": "contig"} if channels > 1 else {}
        tifffile.imwrite(
            root / "images" / name, array.squeeze(-1) if channels == 1 else array, photometric="minisblack", **planes
        )
        (root / f"class{label}").mkdir(exist_ok=True)
        shutil.copy(root / "images" / name, root / f"class{label}" / name)
        Image.fromarray(mask).save(root / "masks" / f"{i}.png")
        np.save(root / "depth" / f"{i}.npy", (1.0 + mask).astype(np.float32))
        objects = [{"pixel_coords": [0, 0, 8.2 + label]}] * (3 + label)
        scenes.append({"image_filename": name, "objects": objects})
    (root / "images" / "scenes.json").write_text(json.dumps({"scenes": scenes}))
    return root


@pytest.mark.parametrize("channels", [1, 4])
def test_every_task_reads_the_channels(tmp_path: Path, channels: int, capsys):
    run_of(tmp_path / "run", channels, scale=(65535.0,), nodata=7.0)
    train, test = squares(tmp_path / "a", channels, 24, 0), squares(tmp_path / "b", channels, 12, 1)
    for task, options, where in (
        ("segment", ["--epochs", "4"], ""),
        ("depth", ["--epochs", "4"], ""),
        ("count", ["--epochs", "2"], "images"),
        ("distance", ["--epochs", "2", "--pool", "attentive"], "images"),
        ("finetune", ["--epochs", "2", "--head-batch-size", "6"], "classes"),
        ("lowshot", ["--per-class", "4", "--finetune", "--epochs", "2", "--head-batch-size", "4"], "classes"),
    ):
        places = [train / where, test / where]
        if where == "classes":
            places = [tmp_path / f"{task}{part}" for part in "ab"]
            for place, root in zip(places, (train, test), strict=True):
                for label in range(2):
                    shutil.copytree(root / f"class{label}", place / f"class{label}")
        out = tmp_path / f"out_{task}"
        given = ["--checkpoint", tmp_path / "run", "--train", places[0], "--test", places[1], "--out", out, "--no-cache"]
        assert cli.main(["eval", task, *map(str, given), *options]) == 0, (task, capsys.readouterr().err)
        result = json.loads((out / "result.json").read_text())
        assert result["data"]["num_test"] == 12 and result["settings"]["values"]["count"] == channels
        assert "2 images have 2 values without data" in " ".join(result["notes"]), (task, result["notes"])
        if task == "segment":  # the last channel says it, even through random weights
            assert result["scores"]["pixel accuracy, linear"] > 80 and (out / "segment.png").is_file()


def test_pictures_show_the_chosen_channels(tmp_path: Path):
    run_of(tmp_path / "run", shown=(1, 1, 0))
    root = arrays(tmp_path / "a", count=1)
    given = ["--checkpoint", tmp_path / "run", "--images", root, "--out", tmp_path / "o", "--num", "2"]
    assert cli.main(["visualize", "masks", *map(str, given)]) == 0
    values = Values(count=4, high=(1.0,), shown=(3, 0, 1))
    shown = values.pictured(np.array([[[0.0, 0.2, 0.4, 1.0]]], np.float32))
    assert shown.tolist() == [[[255, 0, 51]]] and shown.dtype == np.uint8
    assert Values(count=1, high=(1.0,)).pictured(np.full((1, 1, 1), 0.5, np.float32)).tolist() == [[[128, 128, 128]]]


@pytest.mark.parametrize("channels", [1, 4])
def test_timm_gets_the_channels(tmp_path: Path, channels: int):
    run_of(tmp_path / "run", channels)
    encoder, _ = read_encoder(tmp_path / "run")
    source = open_source(tmp_path / "run")
    export(source, tmp_path / "t", "timm", "target", "float32")
    described = json.loads((tmp_path / "t" / "config.json").read_text())
    assert described["pretrained_cfg"]["input_size"] == [channels, 48, 48]
    assert described["pretrained_cfg"]["first_conv"] is None  # older versions of timm would replace its weights
    model = timm.create_model(f"local-dir:{tmp_path / 't'}", pretrained=True).eval()
    images = batch(channels=channels)
    with torch.no_grad():
        assert largest(model.forward_features(images), encoder(images)) < 1e-4
    back, facts = read_encoder(tmp_path / "t")
    assert facts.size.channels == channels and len(facts.mean) == channels and torch.equal(back(images), encoder(images))
    with pytest.raises(WeightsError, match="channels, which published models do not support"):
        export(source, tmp_path / "p", "published", "all", "float32")


def test_transformers_gets_the_channels(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    run_of(tmp_path / "run")
    encoder, _ = read_encoder(tmp_path / "run")
    export(open_source(tmp_path / "run"), tmp_path / "h", "hf", "target", "float32")
    model = transformers.IJepaModel.from_pretrained(tmp_path / "h").eval()
    assert model.config.num_channels == 4 and not (tmp_path / "h" / "preprocessor_config.json").exists()
    with torch.no_grad():
        assert largest(model(batch()).last_hidden_state, encoder(batch())) < 1e-4
    assert read_encoder(tmp_path / "h")[1].size.channels == 4


def test_an_export_reads_numbers_like_the_run(tmp_path: Path):
    run_of(tmp_path / "run", channels=2, offset=(1.0, 2.0), outside="clip")
    export(open_source(tmp_path / "run"), tmp_path / "s", "safetensors", "target", "float32")
    numbers = np.random.default_rng(0).random((70, 60, 2), dtype=np.float32) * 12
    (one, a), (two, b) = load_encoder(tmp_path / "run"), load_encoder(tmp_path / "s" / "model.safetensors")
    assert torch.equal(a(numbers), b(numbers)) and torch.equal(one(a(numbers)[None]), two(b(numbers)[None]))
    with pytest.raises(WeightsError, match=r"expected numbers \[H, W, 2\]"):
        a(Image.new("RGB", (50, 50)))
    assert "(value - [1.0, 2.0]) / ([10.0] - [1.0, 2.0])" in (tmp_path / "s" / "README.md").read_text()


@pytest.mark.parametrize(("how", "channels"), [("average", 5), ("repeat", 5), ("average", 1), ("repeat", 1), ("average", 3)])
def test_an_rgb_encoder_starts_other_channels(tmp_path: Path, how: str, channels: int):
    write_run(tmp_path / "rgb")
    rgb, _ = read_encoder(tmp_path / "rgb")
    cfg = small_config(tmp_path / "new")
    given = {"mean": (0.4,) * channels, "std": (0.2,) * channels, "scale": (10.0,)}
    cfg = replace(
        cfg, data=replace(cfg.data, **given), model=replace(cfg.model, channels=channels, init_from=str(tmp_path / "rgb"))
    )
    if channels != 3:
        with pytest.raises(WeightsError, match=rf"model.channels is {channels} here, 3 there \(model.init_channels says how"):
            open_start(cfg)
    start = open_start(replace(cfg, model=replace(cfg.model, init_channels=how)))
    kernels, weight = rgb.patch_embed.proj.weight, start.teacher("patch_embed.proj.weight")
    assert weight.shape == (48, channels, 8, 8)
    assert (f"patch embedding of {channels} channels instead of 3" in " ".join(start.notes)) == (channels != 3)
    if channels == 3:
        assert torch.equal(weight, kernels)
    elif how == "average":
        torch.testing.assert_close(weight.sum(dim=1), kernels.sum(dim=1))  # an image of equal channels is embedded alike
        assert torch.equal(weight[:, 0], weight[:, -1])
    else:
        torch.testing.assert_close(weight, kernels[:, [0, 1, 2, 0, 1][:channels]] * 3 / channels)
    assert start.student("encoder.patch_embed.proj.weight", weight.shape).shape == weight.shape
    assert torch.equal(start.teacher("norm.weight"), rgb.norm.weight)


def test_weights_that_do_not_say_their_channels_are_refused(tmp_path: Path, capsys):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, in_chans=2, num_classes=0, class_token=False, global_pool="avg"
    )
    from ijepa_ds.model.vit import sincos_position_embedding

    model.pos_embed.data.copy_(sincos_position_embedding(192, 2))
    state = {name.replace("fc_norm", "norm"): value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "x.pth")
    _, facts = read_encoder(tmp_path / "x.pth")
    assert facts.size.channels == 2 and facts.mean == (0.0, 0.0) and facts.std == (1.0, 1.0)
    root = arrays(tmp_path / "a")
    given = ["--checkpoint", tmp_path / "x.pth", "--train", root, "--test", root, "--out", tmp_path / "o"]
    assert cli.main(["eval", "knn", *map(str, given)]) != 0
    assert "an encoder of 2 channels, whose file does not say how images become channels" in capsys.readouterr().err
