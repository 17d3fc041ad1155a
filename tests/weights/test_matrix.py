"""Every conversion, from x to: the target's own library computes what the source's own library computes.

`pytest -s tests/weights/test_matrix.py` prints the largest differences of docs/weights.md.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from ijepa_ds import config
from ijepa_ds.config import Config
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.weights import WeightsError, open_source, read_encoder
from ijepa_ds.weights.export import export
from ijepa_ds.weights.formats import timm_model
from tests.weights_cases import images, largest, small_config, write_published, write_run

# The published shapes at reduced depth: name, patch, image, timm's name.
SHAPES = {
    "small": ("tiny", 8, 48, "vit_base_patch16_gap_224"),
    "H/14": ("huge", 14, 224, "vit_huge_patch14_gap_224"),
    "g/16": ("giant", 16, 224, "vit_giant_patch16_gap_224"),
}


def configuration(shape: str, folder: Path) -> Config:
    """One block of a published shape, two of the small one, with a small predictor."""
    name, patch, side, _ = SHAPES[shape]
    cfg = small_config(folder)
    if shape == "small":
        return cfg
    overrides = [f"model.name={name}", f"model.patch_size={patch}", f"data.crop_size={side}"]
    overrides += ["model.depth=1", "model.width=null", "model.heads=null", "model.predictor.heads=2", "masks.min_keep=1"]
    return config.load(folder.parent / "written.yaml", overrides)


def state(model: IJEPA, part: str) -> dict[str, Tensor]:
    """Detached values of a part, tables included."""
    return {name: value.detach() for name, value in getattr(model, part).state_dict().items()}


def timm_of(model: IJEPA, shape: str) -> nn.Module:
    """A timm model with the target's values, loaded by PyTorch, strictly."""
    size = model.target_encoder.size
    arguments = {"depth": size.depth, "num_classes": 0}
    if shape == "small":
        arguments |= {"embed_dim": size.width, "num_heads": size.heads, "img_size": 48, "patch_size": 8}
    made = timm.create_model(SHAPES[shape][3], **arguments).eval()
    made.load_state_dict(state(model, "target_encoder"))
    return made


def make(kind: str, model: IJEPA, shape: str, folder: Path) -> tuple[Path, Callable[[Tensor], Tensor]]:
    """Weights of `kind` on disk, written by the library they belong to, and that library's features."""
    if kind in ("run", "published"):
        if kind == "published":
            parts = {part: state(model, part) for part in ("encoder", "predictor", "target_encoder")}
            write_published(folder / "x.pth.tar", parts)
        return (folder / "run" if kind == "run" else folder / "x.pth.tar"), model.target_encoder
    if kind == "timm":
        made = timm_of(model, shape)
        torch.save(made.state_dict(), folder / "timm.pth")
        return folder / "timm.pth", made.forward_features
    transformers = pytest.importorskip("transformers")
    size = model.target_encoder.size
    settings = {"hidden_size": size.width, "num_hidden_layers": size.depth, "num_attention_heads": size.heads}
    settings |= {"intermediate_size": size.mlp_hidden, "patch_size": SHAPES[shape][1], "image_size": SHAPES[shape][2]}
    made = transformers.IJepaModel(transformers.IJepaConfig(**settings, layer_norm_eps=1e-6)).eval()
    theirs = made.state_dict()
    for name, value in state(model, "target_encoder").items():  # by hand, not by the code under test
        theirs |= by_hand(name, value)
    made.load_state_dict(theirs)
    made.save_pretrained(folder / "own-hf")
    return folder / "own-hf", lambda x: made(x).last_hidden_state


def by_hand(name: str, value: Tensor) -> dict[str, Tensor]:
    """One of our parameters under the names of transformers' modules."""
    for ours, theirs in (
        ("pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("blocks.", "layers."),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("attn.proj", "attention.o_proj"),
    ):
        name = name.replace(ours, theirs)
    if name.startswith("norm."):
        name = "layer" + name
    if "attn.qkv" in name:
        thirds = zip("qkv", value.chunk(3), strict=True)
        return {name.replace("attn.qkv", f"attention.{letter}_proj"): part for letter, part in thirds}
    return {name: value}


def features_of(path: Path, to: str, which: str) -> Callable[[Tensor], Tensor]:
    """What the library for which `to` was written computes from it."""
    if to == "timm":
        source = open_source(path)
        name, arguments = timm_model(source)
        return timm.create_model(name, checkpoint_path=path / "model.safetensors", **arguments).eval().forward_features
    if to == "hf":
        transformers = pytest.importorskip("transformers")
        model = transformers.IJepaModel.from_pretrained(path).eval()
        return lambda x: model(x).last_hidden_state
    return read_encoder(path / "checkpoint.pth.tar" if to == "published" else path, which, heads=open_heads(path, to))[0]


def open_heads(path: Path, to: str) -> int | None:
    """The published format does not tell the heads; the test knows them from the model card."""
    if to != "published":
        return None
    return int((path / "README.md").read_text().partition(" heads")[0].rpartition(" ")[2])


@pytest.mark.parametrize(
    "shape",
    [
        "small",
        pytest.param("H/14", marks=pytest.mark.slow),
        pytest.param("g/16", marks=[pytest.mark.slow, pytest.mark.nightly]),
    ],
)
def test_from_to(shape: str, tmp_path: Path) -> None:
    cfg = configuration(shape, tmp_path / "run")
    model = write_run(tmp_path / "run", cfg)
    rows, batch, heads = [], images(SHAPES[shape][2])[: 2 if shape == "small" else 1], model.target_encoder.size.heads
    for kind in ("run", "published", "timm", "hf"):
        path, native = make(kind, model, shape, tmp_path)
        with torch.no_grad():
            expected, cells = native(batch), []
            cells.append(largest(read_encoder(path, heads=heads)[0](batch), expected))
            for to in ("safetensors", "timm", "hf", "published"):
                out = tmp_path / f"{kind}-{to}"
                if to == "published" and kind in ("timm", "hf"):
                    with pytest.raises(WeightsError, match="not all parts"):
                        export(open_source(path, heads), out, to)
                    cells.append(None)
                    continue
                export(open_source(path, heads), out, to)
                which = "target" if kind in ("run", "published") else None
                cells.append(largest(features_of(out, to, which)(batch), expected))
        rows.append((kind, cells))
    print(f"\n{shape:<10}", *(f"{name:>11}" for name in ("here", "safetensors", "timm", "hf", "published")))
    for kind, cells in rows:
        print(f"{kind:<10}", *(f"{'-' if cell is None else f'{cell:.1e}':>11}" for cell in cells))
    assert max(cell for _, cells in rows for cell in cells if cell is not None) < 1e-5


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    model = write_run(tmp_path / "run")
    with torch.no_grad():
        assert largest(model.encoder(images(48)), model.target_encoder(images(48))) > 0.1
