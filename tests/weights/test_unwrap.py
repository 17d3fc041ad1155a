"""Weights under the names that other people's training code gives them: read the same everywhere, or refused in words."""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ijepa_ds.weights import load_encoder, open_source
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.unwrap import find_parts
from tests.weights_cases import oracle_tensors

HEADS = 3


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, Tensor]]:
    """Tensors of a small network, the two encoders different."""
    return oracle_tensors()


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def both(prefix: str, context: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Any]:
    return {"encoder": under(prefix, context), "target_encoder": under(prefix, target)}


def inside(tensors: dict[str, Tensor], word: str) -> dict[str, Tensor]:
    return {name.replace(".attn.", f".{word}.attn."): value for name, value in tensors.items()}


def without(tensors: dict[str, Tensor], start: str) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if not name.startswith(start)}


WRAPPED: dict[str, Callable[[dict[str, Tensor], dict[str, Tensor]], Any]] = {
    "compiled, then DDP": lambda c, t: {
        "encoder": under("module._orig_mod.", c),
        "target_encoder": under("module._orig_mod.", t),
    },
    "DDP, then compiled": lambda c, t: {
        "encoder": under("_orig_mod.module.", c),
        "target_encoder": under("_orig_mod.module.", t),
    },
    "fsdp": lambda c, t: {"target_encoder": under("_fsdp_wrapped_module.", t)},
    "fsdp, each block": lambda c, t: {
        "target_encoder": {n.replace(".attn.", "._fsdp_wrapped_module.attn."): v for n, v in t.items()}
    },
    "target alone": lambda c, t: {"target_encoder": under("module.", t)},
    "lightning": lambda c, t: {
        "state_dict": under("encoder.", c) | under("target_encoder.", t),
        "epoch": 3,
        "loops": {"x": {}},
    },
    "lightning, deeper": lambda c, t: {"state_dict": under("model.encoder.", c) | under("model.target_encoder.module.", t)},
    "beside a head": lambda c, t: {"model": under("target_encoder.", t) | {"probe.weight": torch.zeros(3, 48)}},
    "one model": lambda c, t: {"model": under("model.", t)},
    "one encoder": lambda c, t: {"state_dict": under("module.encoder.", t)},
    "teacher": lambda c, t: {"student": under("backbone.", c), "teacher": under("backbone.", t), "optimizer": {"state": {}}},
    "nested": lambda c, t: {"model": {"module": {"target_encoder": t, "encoder": c}}},
    "plain": lambda c, t: t,
    "moving average": lambda c, t: {"state_dict": c, "state_dict_ema": under("module.", t)},
}


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_names_are_read(how: str, parts: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    context, target = parts["encoder"], parts["target_encoder"]
    path = tmp_path / "x.pth"
    torch.save(WRAPPED[how](context, target), path)
    encoder, _ = load_encoder(path, heads=HEADS)
    assert encoder is not None
    for name, value in encoder.named_parameters():
        assert torch.equal(value, target[name]), name


@pytest.mark.parametrize(
    "prefix",
    [".".join(words) + "." for words in itertools.permutations(("module", "_orig_mod", "_fsdp_wrapped_module", "model"), 3)],
)
def test_wrappers_in_any_order(prefix: str, parts: dict[str, dict[str, Tensor]]) -> None:
    target = parts["target_encoder"]
    found = find_parts({"target_encoder": under(prefix, target)}, "x")
    assert found.keys() == {"target"} and found["target"].keys() == target.keys()
    again = find_parts(under(prefix + "target_encoder." + prefix, target), "x")
    assert again["target"].keys() == target.keys()


REFUSED: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "video": (
        lambda t: t | {"patch_embed.proj.weight": t["patch_embed.proj.weight"].unsqueeze(2).repeat(1, 1, 2, 1, 1)},
        r"patch_embed.proj.weight is \[48, 3, 2, 8, 8\]: patches of video",
    ),
    "flat": (lambda t: t | {"patch_embed.proj.weight": t["patch_embed.proj.weight"].flatten(1)}, "patches flattened"),
    "half": (lambda t: without(t, "blocks.0.attn.qkv.weight"), "blocks.0.attn.qkv.weight is missing"),
    "no patches": (
        lambda t: {n: v for n, v in t.items() if not n.startswith("patch_embed")},
        "a part of an encoder is missing",
    ),
    "a ResNet": (
        lambda t: {"layer1.0.conv1.weight": torch.zeros(4, 4, 3, 3), "fc.weight": torch.zeros(2, 4)},
        "looks like a ResNet",
    ),
    "a CLIP model": (lambda t: under("visual.", t) | {"logit_scale": torch.zeros(1)}, "looks like a CLIP model"),
    "MAE": (lambda t: t | {"decoder_blocks.0.norm1.weight": torch.zeros(48)}, "masked autoencoder"),
    "DINOv2": (lambda t: t | {"blocks.0.ls1.gamma": torch.zeros(48)}, "looks like a DINOv2 model"),
    "predictor alone": (lambda t: {"predictor": {"predictor_embed.weight": torch.zeros(24, 48)}}, "no encoder in it"),
    "no tensors": (lambda t: {"epoch": 3}, "there are no tensors"),
    "twice": (lambda t: t | under("module.", t), "are both"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_other_weights_are_refused_in_words(how: str, parts: dict[str, dict[str, Tensor]], tmp_path: Path) -> None:
    make, message = REFUSED[how]
    path = tmp_path / "x.pth"
    torch.save(make(parts["target_encoder"]), path)
    with pytest.raises(WeightsError, match=message) as caught:
        open_source(path, heads=HEADS)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"loss": np.float64(0.4), "step": np.int64(3), "flag": np.bool_(True), "half": np.float16(1)},
        {"args": argparse.Namespace(lr=0.1, out=Path("x"))},
        {"history": np.arange(3.0), "names": {"a": np.float32(1)}},
    ],
)
def test_plain_values_are_refused_with_lines_that_convert_the_file(
    extra: dict[str, Any], parts: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "a'b.pth"
    torch.save({"target_encoder": under("module.", parts["target_encoder"])} | extra, path)
    with pytest.raises(WeightsError, match="contains more than plain weights") as caught:
        open_source(path, heads=HEADS)
    lines = str(caught.value).splitlines()[-2:]
    with torch.serialization.safe_globals([]):
        exec("\n".join(lines), {})  # as the message says
        torch.serialization.clear_safe_globals()
    converted = open_source(tmp_path / "a'b-tensors.pth", heads=HEADS)
    assert list(converted.parts) == ["target"]


def test_code_is_refused_without_a_way_around_it(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("ran",))

    torch.save({"x": Harmful(), "y": np.float64(1)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"builtins\.print") as caught:
        open_source(tmp_path / "x.pth")
    assert "Two lines" not in str(caught.value)
