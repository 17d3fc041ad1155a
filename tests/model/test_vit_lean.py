"""Blocks that keep less for their backward pass compute what timm's do, under the same names, and do keep less."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from ijepa_ds.config.sizes import Size
from ijepa_ds.model.cpu.linear import use_onednn
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.model.vit_lean import LeanBlock, keep_less

OPTIONS: list[dict[str, Any]] = [{}, {"qk_norm": True}, {"layer_scale": 0.1}, {"drop_path": 0.5}, {"qkv_bias": False}]


def passed(encoder: nn.Module, context: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and every gradient."""
    y = encoder(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), context)
    y.square().mean().backward()
    return {"": y.detach()} | {name: p.grad for name, p in encoder.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: next(iter(o), "plain"))
@pytest.mark.parametrize("onednn", [False, pytest.param(True, marks=pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="THIS TORCH HAS NO oneDNN: its products were not tested"
))])  # fmt: skip
def test_names_values_and_gradients_stay(options: dict[str, Any], checkpointing: str, onednn: bool) -> None:
    context = torch.tensor([[[0, 2, 3, 5, 9]], [[1, 4, 6, 7, 8]]])
    results = []
    for lean in (False, True):
        encoder = Encoder(Size(48, 3, 3, 96, **options), 8, 4, checkpointing)
        initialise(encoder, 0, layer_scale=options.get("layer_scale", 0.0))
        if onednn:
            use_onednn(encoder)
        if lean:
            keep_less(encoder)
            assert all(type(block) is LeanBlock for block in encoder.blocks)
        results.append(passed(encoder, context))
    assert results[0].keys() == results[1].keys()
    for name, theirs in results[0].items():
        torch.testing.assert_close(results[1][name], theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()), msg=name)


def test_it_keeps_less() -> None:
    """Inputs of both norms, q, k, v, attention's result and the MLP's hidden layer; not what comes out of norms and GELU."""
    sizes = []
    for lean in (False, True):
        encoder = Encoder(Size(48, 1, 3, 192), 8, 4)
        if lean:
            keep_less(encoder)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(2, 16, 48, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = encoder.blocks[0](x)
        del y
        for parameter in encoder.parameters():
            kept.pop(parameter.data_ptr(), None)
        sizes.append(sum(kept.values()) / (2 * 16 * 4))  # numbers a token
    width, hidden, few = 48, 192, 3 + 4  # log-sum-exp of heads; mean and deviation of two norms
    assert sizes[1] == pytest.approx(2 * width + 4 * width + hidden, abs=few)
    assert sizes[0] == pytest.approx(4 * width + 4 * width + 2 * hidden, abs=few)


@pytest.mark.parametrize("options", [{"swiglu": True}, {"rope": True}, {"parallel": True}], ids=lambda o: next(iter(o)))
def test_other_blocks_stay_as_they_are(options: dict[str, Any]) -> None:
    encoder = Encoder(Size(48, 2, 3, 96, **options), 8, 4)
    before = [type(block) for block in encoder.blocks]
    keep_less(encoder)
    assert [type(block) for block in encoder.blocks] == before


def test_without_gradients_and_in_other_types_it_is_timms() -> None:
    encoder = Encoder(Size(48, 2, 3, 96), 8, 4).eval()
    initialise(encoder, 0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = encoder(images)
    keep_less(encoder)
    assert torch.equal(encoder(images).detach(), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder(images).detach(), narrow)
    assert math.isfinite(float(wanted.sum()))
