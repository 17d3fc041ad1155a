"""Encoders out of any weights: the same features as the library the weights belong to; everything else is refused."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import ijepa_ds
from ijepa_ds import cli
from ijepa_ds.model.vit import sincos_position_embedding
from ijepa_ds.weights import WeightsError, open_source, read_encoder
from tests.weights_cases import (
    hugging_face_model,
    images,
    largest,
    oracle_tensors,
    random_timm_model,
    small_config,
    write_published,
    write_run,
)

# --- the same features


@pytest.mark.parametrize(("which", "part"), [("target", "target_encoder"), ("context", "encoder"), (None, "target_encoder")])
def test_published_checkpoints(which: str | None, part: str, tmp_path: Path) -> None:
    path, wanted = write_published(tmp_path / "x-ep3.pth.tar"), oracle_tensors()[part]
    encoder, facts = read_encoder(path, which, heads=3)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, wanted[name]) or (name == "pos_embed" and largest(value, wanted[name]) < 1e-6), name
    assert (facts.kind, facts.which, facts.patch_size, facts.image_size) == ("published", which or "target", 8, 48)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_the_recorded_published_files(shared: Path) -> None:
    for name, heads in (("small", 4), ("two-contexts", 3)):
        folder = shared / "oracle" / name
        source = open_source(folder / "published-format.pth.tar", heads=heads)
        assert set(source.parts) == {"context", "target", "predictor"} and source.predictor is not None
        theirs = torch.load(folder / "published-format.pth.tar", weights_only=True)["target_encoder"]
        encoder, _ = read_encoder(folder / "published-format.pth.tar", heads=heads)
        for parameter, value in encoder.named_parameters():
            assert torch.equal(value, theirs["module." + parameter])


@pytest.mark.parametrize("name", ["vit_huge_patch14_gap_224", "vit_giant_patch16_gap_224"])
def test_timm_files(name: str, tmp_path: Path) -> None:
    model = random_timm_model(name, depth=1)
    torch.save({"state_dict": {"module." + k: v for k, v in model.state_dict().items()}}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match="how many attention heads"):  # of this depth it is no known size
        read_encoder(tmp_path / "model.pth")
    encoder, facts = read_encoder(tmp_path / "model.pth", heads=16)
    with torch.no_grad():
        ours, theirs = encoder(images(224)), model.forward_features(images(224))
        assert largest(ours, theirs) < 1e-5
        # timm's head pools (`avg`) after the last norm, as evaluation here does
        assert largest(ours.mean(dim=1), model.forward_head(theirs)) < 1e-5
    assert facts.which == "unlabelled" and facts.image_size == 224


def test_timm_folders_tell_the_heads(tmp_path: Path) -> None:
    arguments = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 48, "patch_size": 8}
    model = random_timm_model("vit_base_patch16_gap_224", **arguments)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    about = {"architecture": "vit_base_patch16_gap_224", "model_args": arguments}
    about["pretrained_cfg"] = {"mean": [0.5] * 3, "std": [0.4] * 3}
    (tmp_path / "config.json").write_text(json.dumps(about))
    encoder, facts = read_encoder(tmp_path)
    with torch.no_grad():
        assert largest(encoder(images(48)), model.forward_features(images(48))) < 1e-5
    assert facts.size.heads == 3 and facts.mean == (0.5, 0.5, 0.5) and facts.std == (0.4, 0.4, 0.4)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"architecture": "vit_little_patch16_reg4_gap_256"}, "no LayerNorm behind the last one"),
        ({"architecture": "vit_base_patch16_224", "model_args": {"global_pool": "avg"}}, "no LayerNorm behind the last one"),
        ({"architecture": "vit_base_patch16_xp_224"}, "other blocks than a plain ViT"),
        ({"model_type": "ijepa", "num_attention_heads": "two"}, "'two' heads do not divide"),
        ({"model_type": "ijepa", "num_attention_heads": 0}, "0 heads do not divide"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_by_name(about: dict, message: str, tmp_path: Path) -> None:
    hugging_face_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(WeightsError, match=message):
        read_encoder(tmp_path)


def test_indices_and_files_that_hold_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "ijepa"}))
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="no weight_map"):
        read_encoder(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="expected a dictionary of weights, found a list"):
        read_encoder(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_hugging_face_folders(file: str, tmp_path: Path) -> None:
    model = hugging_face_model()
    model.save_pretrained(tmp_path)
    if file == "pytorch_model.bin":  # with the names of the modules, as torch.save(model.state_dict()) has them
        (tmp_path / "model.safetensors").unlink()
        torch.save({"ijepa." + k: v for k, v in model.state_dict().items()}, tmp_path / file)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.4] * 3}))
    encoder, facts = read_encoder(tmp_path)
    with torch.no_grad():
        assert largest(encoder(images(48)), model(images(48)).last_hidden_state) < 1e-5
    assert (facts.kind, facts.which, facts.mean) == ("hugging face", "unlabelled", (0.5, 0.5, 0.5))
    if file == "model.safetensors":  # the file inside will do as well
        assert read_encoder(tmp_path / file)[1].size.heads == 3


def test_hugging_faces_default_eps_is_kept(tmp_path: Path) -> None:
    model = hugging_face_model(layer_norm_eps=1e-3)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert largest(read_encoder(tmp_path)[0](images(48)), model(images(48)).last_hidden_state) < 1e-5


def test_runs(tmp_path: Path) -> None:
    model = write_run(tmp_path / "run")
    for which, wanted in ((None, model.target_encoder), ("context", model.encoder)):
        for path in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "step_00000020"):
            encoder, facts = read_encoder(path, which)
            assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), wanted.parameters(), strict=True))
            assert facts.step == 20 and facts.config is not None and facts.mean == (0.4, 0.5, 0.6)
    start, facts = read_encoder(tmp_path / "run", "untrained")
    assert facts.step == 0 and not torch.equal(start.norm.weight, model.encoder.norm.weight)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "last_checkpoint.json").unlink(missing_ok=True)
    read_encoder(tmp_path / "run", "untrained")
    with pytest.raises(WeightsError, match="no checkpoint yet"):
        read_encoder(tmp_path / "run")


def test_the_folder_of_init_is_not_the_run_but_names_it(tmp_path: Path) -> None:
    write_run(tmp_path / "mine" / "run")
    shutil.copy(tmp_path / "mine" / "run" / "config.yaml", tmp_path / "mine")
    with pytest.raises(WeightsError, match=r"no checkpoint yet; did you mean .*mine/run\?"):
        read_encoder(tmp_path / "mine")


def test_untrained_is_what_a_run_with_init_from_started_from(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first")
    cfg = small_config(tmp_path / "second")
    cfg = replace(cfg, model=replace(cfg.model, init_from=str(tmp_path / "first")))
    write_run(tmp_path / "second", cfg, step=30)
    start, facts = read_encoder(tmp_path / "second", "untrained")
    assert facts.step == 0
    assert all(torch.equal(a, b) for a, b in zip(start.parameters(), first.target_encoder.parameters(), strict=True))
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(WeightsError, match="model.init_from: .*first"):
        read_encoder(tmp_path / "second", "untrained")


# --- positions on another grid


def test_positions_are_evaluated_between_the_learnt_ones() -> None:
    table = sincos_position_embedding(48, 4, 8).reshape(4, 4, 48)
    learnt = sincos_position_embedding(48, 8).reshape(8, 8, 48)
    assert torch.equal(sincos_position_embedding(48, 8, 8).reshape(8, 8, 48), learnt)
    # the four patches have their centres at 0.5, 2.5, 4.5, 6.5 of the eight; slow channels are nearly linear there
    middle = (learnt[:, [0, 2, 4, 6]] + learnt[:, [1, 3, 5, 7]]) / 2
    assert (table[0, :, 6:12] - middle[0, :, 6:12]).abs().max() < 0.02
    assert torch.allclose(table[0, 1, :12], torch.sin(2.5 * 10000.0 ** (-torch.arange(12, dtype=torch.float64) / 12)).float())


def test_tables_of_interpolated_positions_are_recognised(tmp_path: Path) -> None:
    model = random_timm_model("vit_base_patch16_gap_224", embed_dim=48, depth=1, num_heads=3, img_size=64, patch_size=8)
    model.pos_embed.data.copy_(sincos_position_embedding(48, 8, 5))
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    encoder, facts = read_encoder(tmp_path / "x.safetensors", heads=3)
    assert facts.position_grid == 5 and encoder.grid == 8
    with torch.no_grad():
        assert largest(encoder(images(64)), model.forward_features(images(64))) < 1e-5


# --- refused


class Opens:
    """A pickle that would run a command."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("old", [False, True])
def test_code_is_never_run(old: bool, tmp_path: Path) -> None:
    path, touched = tmp_path / "nice.pth.tar", tmp_path / "touched"
    torch.save({"encoder": Opens(str(touched))}, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(WeightsError, match=r"nice.pth.tar: refused.*open"):
        open_source(path)
    assert not touched.exists()


def _numpy_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=1)


def _zip_cut_short(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.safetensors", lambda p: torch.save({}, p), "by its name a safetensors file, found a PyTorch file"),
        ("x.pth.tar", lambda p: save_file({"a": torch.zeros(1)}, p), "by its name a PyTorch file, found a safetensors file"),
        ("x.pth", lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
        ("x.pth", lambda p: p.write_text("<!DOCTYPE html><html>404</html>"), "a web page"),
        ("x.bin", lambda p: p.write_bytes(b""), "an empty file"),
        ("x.pt", lambda p: p.write_bytes(pickle.dumps({})), "a bare pickle"),
        ("x.pt", lambda p: torch.jit.script(torch.nn.Linear(1, 1)).save(p), "TorchScript archive, which holds code"),
        ("x.pth", _numpy_archive, "a zip archive that is no PyTorch file"),
        ("x.pth.tar", _zip_cut_short, "damaged or unfinished zip"),
        ("x.safetensors", lambda p: p.write_bytes((99).to_bytes(8, "little") + b"{" + b" " * 200), "a damaged safetensors"),
        ("x", lambda p: Image.new("RGB", (4, 4)).save(p, "PNG"), "a PNG picture"),
        ("x.pth", lambda p: torch.save(torch.zeros(3), p), "expected a dictionary of weights, found a Tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
def test_files_that_are_not_what_their_name_says(name: str, write: Callable, message: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(WeightsError, match=f"{name}: .*{message}"):
        open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("norm.weight"), "norm.weight is missing"),
        (lambda e: e.update({"cls_token": torch.zeros(1, 1, 48)}), "cls_token is not part .*a class token"),
        (lambda e: e.update({"norm.bias": torch.zeros(47)}), r"norm.bias is \[47\], expected \[48\]"),
        (lambda e: e.update({"norm.bias": torch.zeros(48, dtype=torch.int64)}), "norm.bias is torch.int64"),
        (lambda e: e.update({"pos_embed": torch.randn(1, 36, 48)}), "not I-JEPA's fixed sine-cosine"),
        (lambda e: e.update({"pos_embed": torch.zeros(1, 35, 48)}), "not those of a square grid"),
        (lambda e: e.clear(), "not a ViT encoder"),
    ],
)
def test_other_networks(change: Callable, message: str, tmp_path: Path) -> None:
    parts = oracle_tensors()
    change(parts["encoder"])
    write_published(tmp_path / "x.pth.tar", parts)
    with pytest.raises(WeightsError, match=message):
        open_source(tmp_path / "x.pth.tar", heads=3)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such file or folder"):
        open_source(tmp_path / "no")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match="neither a run directory.*contains notes.txt"):
        open_source(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(WeightsError, match="no weights"):
        open_source(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="model_type is 'vit'"):
        open_source(tmp_path)
    parts = oracle_tensors()
    save_file(parts["encoder"], tmp_path / "one.safetensors")
    with pytest.raises(WeightsError, match="does not say which it is"):
        read_encoder(tmp_path / "one.safetensors", "target", heads=3)
    with pytest.raises(WeightsError, match="which: expected"):
        read_encoder(tmp_path / "one.safetensors", "best")
    write_run(tmp_path / "run")
    with pytest.raises(WeightsError, match=r"no checkpoint of step 7; there are \[20\]"):
        open_source(tmp_path / "run", step=7)


# --- from Python, and evaluation


@pytest.mark.slow
def test_load_encoder_needs_neither_deepspeed_nor_dali(tmp_path: Path) -> None:
    """In an interpreter that cannot import them."""
    write_run(tmp_path / "run")
    Image.new("RGB", (70, 60), (200, 30, 90)).save(tmp_path / "x.png")
    code = (
        "import sys\n"
        "for name in ('deepspeed', 'nvidia', 'nvidia.dali', 'tensorboard', 'transformers', 'sklearn'):\n"
        "    sys.modules[name] = None\n"  # importing it raises ImportError
        "import ijepa_ds\n"
        "from PIL import Image\n"
        f"encoder, transform = ijepa_ds.load_encoder({str(tmp_path / 'run')!r})\n"
        f"tokens = encoder(transform(Image.open({str(tmp_path / 'x.png')!r}))[None])\n"
        "print(tuple(tokens.shape), tokens.dtype, encoder.training)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 36, 48) torch.float32 False"


def test_the_transform_is_that_of_evaluation(tmp_path: Path) -> None:
    from ijepa_ds.data.transforms import load_eval_images, normalize

    write_run(tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    _, transform = ijepa_ds.load_encoder(tmp_path / "run")
    batch = torch.from_numpy(load_eval_images([str(tmp_path / "x.png")], 48, 1))
    expected = normalize(batch, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), torch.float32)
    assert torch.equal(transform(Image.open(tmp_path / "x.png"))[None], expected)


def test_names_are_looked_up_in_the_local_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match="no such repository in the local Hugging Face cache"):
        ijepa_ds.load_encoder("owner/model")
    snapshot = tmp_path / "models--owner--model" / "snapshots" / "abc"
    hugging_face_model().save_pretrained(snapshot)
    (tmp_path / "models--owner--model" / "refs").mkdir()
    (tmp_path / "models--owner--model" / "refs" / "main").write_text("abc")
    encoder, transform = ijepa_ds.load_encoder("owner/model")
    assert encoder(transform(Image.new("RGB", (50, 50)))[None]).shape == (1, 36, 48)


def test_evaluation_takes_them(tmp_path: Path) -> None:
    write_published(tmp_path / "x.pth.tar")
    for split, count in (("train", 8), ("test", 3)):
        for label, colour in (("ant", 60), ("bee", 180)):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng(i).integers(-20, 20, (48, 48, 3))
                Image.fromarray((colour + noise).astype(np.uint8)).save(tmp_path / split / label / f"{i}.png")
    options = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test"), "--out", str(tmp_path / "out")]
    checkpoint = ["--checkpoint", str(tmp_path / "x.pth.tar"), "--heads", "3", "--baseline", "untrained", "--device", "cpu"]
    assert cli.main(["eval", "knn", *checkpoint, *options, "--k", "5"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["checkpoint"]["which"] == "target" and result["checkpoint"]["step"] is None
    assert result["scores"]["5-NN"] == 100.0 and result["config"] is None
