"""Exports: other libraries load them without a missing key and compute the same; ours come back to the last bit."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open

from ijepa_ds import cli
from ijepa_ds.config.sizes import SIZES, Size
from ijepa_ds.data.transforms import load_eval_images
from ijepa_ds.evals.features import extract
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.weights import WeightsError, open_source, read_encoder
from ijepa_ds.weights.export import export
from ijepa_ds.weights.formats import metadata, shown_config, timm_model
from ijepa_ds.weights.lazy import LazyTensors
from ijepa_ds.weights.resize import resized
from ijepa_ds.weights.source import Source
from tests.weights_cases import (
    hugging_face_model,
    images,
    largest,
    oracle_tensors,
    random_timm_model,
    write_published,
    write_run,
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with one checkpoint of two ranks."""
    write_run(tmp_path / "run")
    return tmp_path / "run"


def command(*arguments: object) -> int:
    """`ijepa-ds export`."""
    return cli.main(["export", *map(str, arguments)])


def random_source(size: Size, patch: int, grid: int) -> Source:
    """An encoder of random weights as a source."""
    encoder = Encoder(size, patch, grid)
    initialise(encoder, 5)
    tensors = {name: p.detach() + 0.1 * (p.ndim == 1) for name, p in encoder.named_parameters()}
    parts = {"target": LazyTensors({name: lambda value=value: value for name, value in tensors.items()})}
    return Source(
        path=Path("made"), kind="run", parts=parts, size=size, patch_size=patch, grid=grid, position_grid=grid, step=7
    )  # fmt: skip


# --- what others read


@pytest.mark.parametrize("which", ["target", "context"])
def test_transformers_loads_them(which: str, run_dir: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    assert command("--run", run_dir, "--format", "hf", "--which", which, "--out", tmp_path / "hf") == 0
    model, told = transformers.IJepaModel.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    encoder, _ = read_encoder(run_dir, which)
    with torch.no_grad():
        assert largest(model.eval()(images(48)).last_hidden_state, encoder(images(48))) < 1e-5


def test_transformers_transform_is_that_of_evaluation(run_dir: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export(resized(open_source(run_dir), image_size=56), tmp_path / "hf", "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((112, 112), Image.Resampling.BICUBIC)  # to 64 x 64, the central 56 x 56
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    transform = read_encoder(tmp_path / "hf")[1].transform
    # bicubic of PIL and of torchvision differ by rounding to whole levels
    assert transform.size == 56 and (transform(picture) - theirs).abs().max() < 1.5 / 255 / min(transform.std)


@pytest.mark.parametrize(("size", "patch"), [(SIZES["huge"], 14), (SIZES["giant"], 16)])
def test_timm_loads_the_published_shapes(size: Size, patch: int, tmp_path: Path) -> None:
    small = Size(size.width, 1, size.heads, size.mlp_hidden)
    source = random_source(small, patch, 224 // patch)
    path = export(source, tmp_path / "timm", "timm")
    name = {14: "vit_huge_patch14_gap_224", 16: "vit_giant_patch16_gap_224"}[patch]
    model = timm.create_model(name, checkpoint_path=path, depth=1).eval()  # strict: no key missing, none left over
    encoder, _ = read_encoder(tmp_path / "timm")
    with torch.no_grad():
        ours, theirs = encoder(images(224)), model.forward_features(images(224))
    assert largest(theirs, ours) < 1e-5
    assert timm_model(Source(**{**vars(source), "size": size}))[1] == {}  # at full depth, the name says it all


def test_timm_loads_a_run(run_dir: Path, tmp_path: Path) -> None:
    assert command("--run", run_dir, "--step", 20, "--format", "timm", "--out", tmp_path / "timm") == 0
    encoder, _ = read_encoder(run_dir)
    name, arguments = timm_model(open_source(run_dir))
    by_file = timm.create_model(name, checkpoint_path=tmp_path / "timm" / "model.safetensors", **arguments)
    by_folder = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    with torch.no_grad():
        for model in (by_file, by_folder):
            assert largest(model.eval().forward_features(images(48)), encoder(images(48))) < 1e-5
            assert largest(model(images(48)), encoder(images(48)).mean(dim=1)) < 1e-5
    told = timm.data.resolve_model_data_config(by_folder)
    assert (list(told["input_size"]), list(told["mean"]), told["crop_pct"]) == ([3, 48, 48], [0.4, 0.5, 0.6], 0.875)


def test_the_published_format_has_the_published_keys(run_dir: Path, tmp_path: Path) -> None:
    assert command("--run", run_dir, "--format", "published", "--out", tmp_path / "pub") == 0
    written = torch.load(tmp_path / "pub" / "checkpoint.pth.tar", weights_only=True)
    recorded = torch.load(write_published(tmp_path / "x.pth.tar"), weights_only=True)
    assert recorded.keys() <= written.keys()
    for part in ("encoder", "predictor", "target_encoder"):
        assert {k: v.shape for k, v in written[part].items()} == {k: v.shape for k, v in recorded[part].items()}
    encoder, _ = read_encoder(run_dir, "context")
    assert torch.equal(encoder.norm.weight, written["encoder"]["module.norm.weight"])


# --- there and back


@pytest.mark.parametrize("format_", ["safetensors", "timm", "hf", "published"])
@pytest.mark.parametrize("which", ["target", "context"])
def test_export_then_import_is_exact(format_: str, which: str, run_dir: Path, tmp_path: Path) -> None:
    source = open_source(run_dir)
    path = export(source, tmp_path / "out", format_, None if format_ == "published" else which)
    for place in {path, path.parent} if format_ != "published" else {path}:
        encoder, facts = read_encoder(place, which, heads=3)
        before, _ = read_encoder(run_dir, which)
        assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), before.state_dict().values(), strict=True))
        assert facts.which == which
        if format_ != "published":
            assert (facts.step, facts.mean, facts.std) == (20, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
            assert facts.config is not None and facts.config.run.seed == 3


def test_everything_in_one_safetensors_file(run_dir: Path, tmp_path: Path) -> None:
    assert cli.main(["import", str(run_dir), "--out", str(tmp_path / "all")]) == 0
    again, source = open_source(tmp_path / "all"), open_source(run_dir)
    assert set(again.parts) == {"context", "target", "predictor"} and again.predictor == source.predictor
    for part, tensors in source.parts.items():
        for name in tensors:
            assert torch.equal(again.parts[part][name], tensors[name])
    assert command("--run", tmp_path / "all", "--which", "predictor", "--format", "safetensors", "--out", tmp_path / "p") == 0
    only = open_source(tmp_path / "p")
    assert set(only.parts) == {"predictor"}
    with pytest.raises(WeightsError, match="no encoder in it"):
        read_encoder(tmp_path / "p")


def test_from_published_to_hugging_face_takes_the_target(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_published(tmp_path / "x.pth.tar")
    assert command("--run", tmp_path / "x.pth.tar", "--heads", 3, "--format", "hf", "--out", tmp_path / "hf") == 0
    model = transformers.IJepaModel.from_pretrained(tmp_path / "hf")
    assert torch.equal(model.layernorm.weight, oracle_tensors()["target_encoder"]["norm.weight"])
    assert read_encoder(tmp_path / "hf")[1].which == "target"


def test_from_timm_to_hugging_face_and_back(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_timm_model("vit_base_patch16_gap_224", embed_dim=48, depth=2, num_heads=3, img_size=48, patch_size=8)
    torch.save(model.state_dict(), tmp_path / "t.pth")
    export(open_source(tmp_path / "t.pth", heads=3), tmp_path / "hf", "hf")
    theirs = transformers.IJepaModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        assert largest(theirs(images(48)).last_hidden_state, model.forward_features(images(48))) < 1e-5
    hugging_face_model().save_pretrained(tmp_path / "own")
    path = export(open_source(tmp_path / "own"), tmp_path / "timm", "timm")
    name, arguments = timm_model(open_source(tmp_path / "timm"))
    back = timm.create_model(name, checkpoint_path=path, **arguments).eval()
    own = transformers.IJepaModel.from_pretrained(tmp_path / "own").eval()
    with torch.no_grad():
        assert largest(back.forward_features(images(48)), own(images(48)).last_hidden_state) < 1e-5


@pytest.mark.parametrize("format_", ["safetensors", "hf", "timm", "published"])
def test_half_precision(format_: str, run_dir: Path, tmp_path: Path) -> None:
    path = export(open_source(run_dir), tmp_path / "half", format_, dtype="bfloat16")
    encoder, _ = read_encoder(path, "target", heads=3)
    before, _ = read_encoder(run_dir)
    for a, b in zip(encoder.parameters(), before.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.bfloat16().float())
    if format_ == "hf":
        transformers = pytest.importorskip("transformers")
        assert transformers.IJepaModel.from_pretrained(path.parent).dtype == torch.bfloat16


# --- other sizes


def test_another_image_size(run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert command("--run", run_dir, "--format", "timm", "--image-size", 64, "--out", tmp_path / "big") == 0
    assert "8 x 8 patches instead of 6 x 6: sine-cosine positions evaluated between the learnt 6 x 6" in caplog.text
    encoder, facts = read_encoder(tmp_path / "big")
    before, _ = read_encoder(run_dir)
    before.set_grid(8)
    assert facts.image_size == 64 and facts.position_grid == 6
    name, arguments = timm_model(open_source(tmp_path / "big"))
    model = timm.create_model(name, checkpoint_path=tmp_path / "big" / "model.safetensors", **arguments).eval()
    with torch.no_grad():
        assert torch.equal(encoder(images(64)), before(images(64)))
        assert largest(model.forward_features(images(64)), before(images(64))) < 1e-5


def test_another_patch_size_sees_the_same_picture(run_dir: Path) -> None:
    """Every patch of 8 pixels enlarged to 16: the resampled embedding gives what the old one gave."""
    source = open_source(run_dir)
    larger = resized(source, image_size=96, patch_size=16)
    assert larger.notes == ("patch embedding resampled from 8 to 16 pixels a patch",) and larger.grid == source.grid
    weight, bias = (source.parts["target"][f"patch_embed.proj.{kind}"] for kind in ("weight", "bias"))
    picture = torch.nn.functional.interpolate(images(48), scale_factor=2, mode="nearest")
    old = torch.nn.functional.conv2d(images(48), weight, bias, stride=8)
    new = torch.nn.functional.conv2d(picture, larger.parts["target"]["patch_embed.proj.weight"], bias, stride=16)
    assert torch.nn.functional.cosine_similarity(new.flatten(), old.flatten(), dim=0) > 0.8
    with pytest.raises(WeightsError, match="not a whole number of patches"):
        resized(source, image_size=50)


# --- beside the weights


def test_metadata_and_card(run_dir: Path, tmp_path: Path) -> None:
    assert command("--run", run_dir, "--format", "safetensors", "--out", tmp_path / "x") == 0
    with safe_open(tmp_path / "x" / "model.safetensors", "pt") as file:
        told = json.loads(file.metadata()["ijepa_ds"])
    assert (told["which"], told["step"], told["model"]["heads"]) == ("target", 20, 3)
    assert "crop_size: 48" in told["config"]
    assert str(tmp_path) not in json.dumps(told)  # nothing about the machine
    card = (tmp_path / "x" / "README.md").read_text()
    assert "target encoder" in card and "20 steps" in card and "crop_size: 48" in card and str(tmp_path) not in card
    assert metadata(open_source(run_dir), "target")["format"] == "pt"


def test_no_path_of_the_machine_is_published(run_dir: Path) -> None:
    source = open_source(run_dir)
    assert source.config
    run = replace(source.config.run, dir="/home/me/runs/a", resume="/home/me/b", branch_from="/home/me/c")
    scores = replace(source.config.eval, train="/home/me/d", test="/home/me/e.tar", labels="/home/me/f")
    data, model = replace(source.config.data, source="/home/me/g"), replace(source.config.model, init_from="/home/me/h")
    text = shown_config(replace(source, config=replace(source.config, run=run, eval=scores, data=data, model=model)))
    assert text and "/home/me" not in text and "branch_from: c" in text and "test: e.tar" in text


@pytest.mark.parametrize("format_", ["safetensors", "timm", "hf", "published"])
def test_the_cards_code_runs(format_: str, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = export(open_source(run_dir), tmp_path / "x", format_)
    code = path.with_name("README.md").read_text().partition("```python\n")[2].partition("```")[0]
    names = {"image": Image.new("RGB", (60, 70), (9, 90, 200)), "images": images(48)}
    monkeypatch.chdir(path.parent)
    exec(code, names)
    assert names["tokens"].shape[1:] == (36, 48)


def test_the_cards_transform_gives_the_features_of_evaluations(
    shared: Path, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On photographs of their own sizes, in which transformers' processor often crops one pixel beside (docs/LOG.md)."""
    photographs = sorted(map(str, (shared / "data" / "imagenet_sample").glob("*.JPEG")))[:24]
    path = export(open_source(run_dir), tmp_path / "x", "hf")
    card = path.with_name("README.md").read_text()
    assert "not with `AutoImageProcessor`" in "\n".join(card.partition("# I-JEPA")[2].splitlines()[:3])
    encoder, facts = read_encoder(run_dir)
    expected = extract(encoder, [load_eval_images(photographs, 48, 1)], facts.mean, facts.std, "cpu")
    monkeypatch.chdir(path.parent)
    code = compile(card.partition("```python\n")[2].partition("```")[0], "README.md", "exec")
    for photograph, feature in zip(photographs, expected, strict=True):
        names = {"image": Image.open(photograph)}
        exec(code, names)
        cosine = torch.cosine_similarity(names["tokens"].mean(1)[0], feature, 0)
        assert cosine > 0.999, (photograph, cosine)


def test_what_cannot_be_exported(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "x"
    for arguments, message in [
        (["--format", "hf", "--which", "predictor"], "hf models are one encoder"),
        (["--format", "published", "--which", "target"], "holds both encoders and the predictor"),
        (["--format", "timm", "--step", "7"], r"no checkpoint of step 7; there are [20]"),
    ]:
        assert command("--run", run_dir, *arguments, "--out", out) == 2
        assert message in capsys.readouterr().err and not out.exists()
    assert command("--run", run_dir, "--format", "timm", "--out", tmp_path / "x.safetensors") == 2
    assert "names a folder" in capsys.readouterr().err
    out.mkdir()
    (out / "mine").write_text("")
    assert command("--run", run_dir, "--format", "timm", "--out", out) == 2
    assert "not empty" in capsys.readouterr().err and [p.name for p in out.iterdir()] == ["mine"]
    export(open_source(run_dir), tmp_path / "one")
    with pytest.raises(WeightsError, match="not all parts are there"):
        export(open_source(tmp_path / "one"), tmp_path / "two", "published")


def test_a_disk_that_fills_up_leaves_nothing(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ijepa_ds.weights.export.save_tensors", full)
    assert command("--run", run_dir, "--format", "timm", "--out", tmp_path / "out" / "x") == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_import_tells(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_published(tmp_path / "x.pth.tar")
    with caplog.at_level(logging.INFO):
        assert cli.main(["import", str(tmp_path / "x.pth.tar"), "--heads", "3"]) == 0
    for text in (": published", "context, target, predictor", "width 48, depth 2, 3 heads", "patches of 8", "width 24"):
        assert text in caplog.text
