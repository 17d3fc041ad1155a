"""Shapes, names, parameter counts, precision of the networks; the forward pass on a GPU that is not there."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ijepa_ds.config import ModelConfig, PredictorConfig
from ijepa_ds.config_sizes import SIZES, Size, size_of
from ijepa_ds.ijepa import IJEPA
from ijepa_ds.masks import Masks
from ijepa_ds.vit import Encoder, LayerNorm, Predictor, initial_value, initialise

SMALL = Size(48, 2, 3, 192)


def count(name: str, patch: int) -> int:
    """Parameters of an encoder of SIZES, without allocating it."""
    with torch.device("meta"):
        return sum(p.numel() for p in Encoder(SIZES[name], patch, 2).parameters())


@pytest.mark.parametrize(
    ("name", "patch", "millions", "tolerance"),
    [
        ("tiny", 16, 5.5, 0.05),
        ("small", 16, 21.6, 0.1),
        ("base", 16, 86, 0.5),
        ("large", 16, 303, 0.5),
        ("huge", 14, 631, 1),
        ("giant", 16, 1011, 1),
        ("gigantic", 14, 1840, 10),
        ("enormous", 14, 3900, 110),
    ],
)
def test_parameter_counts(name: str, patch: int, millions: float, tolerance: float) -> None:
    assert count(name, patch) / 1e6 == pytest.approx(millions, abs=tolerance)


def test_giants_mlp_is_not_one_short() -> None:
    with torch.device("meta"):
        encoder = Encoder(SIZES["giant"], 16, 2)
    assert encoder.blocks[0].mlp.fc1.out_features == 6144


def test_names_are_timms() -> None:
    names = {n for n, _ in Encoder(SMALL, 8, 4).named_parameters()} | {"pos_embed"}
    block = {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}
    expected = {f"blocks.{i}.{part}.{kind}" for i in range(2) for part in block for kind in ("weight", "bias")}
    expected |= {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert names == expected


def test_overrides_keep_the_rows_ratio() -> None:
    assert size_of(ModelConfig(name="tiny", width=128, depth=4, heads=4)) == Size(128, 4, 4, 512)
    assert size_of(ModelConfig(name="giant")).mlp_hidden == 6144


def test_context_tokens_equal_a_smaller_image_only_when_positions_do() -> None:
    """Masked encoding is attention among the kept tokens only: dropping a token changes nothing it does not see."""
    encoder = Encoder(SMALL, 8, 4).eval()
    initialise(encoder, 0)
    images = torch.randn(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, 1, 16)
    torch.testing.assert_close(encoder(images, everything)[:, 0], encoder(images))
    kept = torch.tensor([[[1, 5, 6]], [[1, 5, 6]]])
    changed = images.clone()
    changed[:, :, 24:, :] += 1.0  # patches 12 ... 15: not kept
    torch.testing.assert_close(encoder(images, kept), encoder(changed, kept))
    assert not torch.allclose(encoder(images), encoder(changed))


def test_start_is_a_function_of_name_and_seed() -> None:
    shape = torch.Size((64, 48))
    value = initial_value("encoder.blocks.0.attn.qkv.weight", shape, 0)
    assert torch.equal(value, initial_value("encoder.blocks.0.attn.qkv.weight", shape, 0))
    assert not torch.equal(value, initial_value("encoder.blocks.1.attn.qkv.weight", shape, 0))
    assert not torch.equal(value, initial_value("encoder.blocks.0.attn.qkv.weight", shape, 1))
    assert float(value.std()) == pytest.approx(0.02, rel=0.05)
    assert float(initial_value("encoder.norm.weight", torch.Size((8,)), 0).mean()) == 1.0
    assert float(initial_value("predictor.predictor_proj.bias", torch.Size((8,)), 0).abs().max()) == 0.0
    assert float(initial_value("predictor.mask_token", torch.Size((1, 1, 64)), 0).std()) > 0.01


def test_layernorm_is_float32_inside() -> None:
    norm = LayerNorm(64).bfloat16()
    x = torch.randn(4, 64) * 0.01 + 300.0  # bfloat16 cannot tell these apart
    expected = torch.nn.functional.layer_norm(x, (64,), eps=1e-6)
    torch.testing.assert_close(norm(x).float(), expected, atol=0.02, rtol=0.02)


def test_checkpointing_changes_nothing() -> None:
    images, context = torch.randn(2, 3, 32, 32), torch.tensor([[[0, 3, 7]], [[2, 4, 9]]])
    gradients = []
    for checkpointing in (False, True):
        encoder = Encoder(SMALL, 8, 4, checkpointing)
        initialise(encoder, 0)
        encoder(images, context).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_on_a_fake_gpu(dtype: torch.dtype) -> None:
    """No tensor on another device, no host synchronisation: FakeTensorMode refuses both."""
    with FakeTensorMode(), torch.device("cuda"):
        parts = Encoder(SMALL, 8, 4), Predictor(48, 24, 2, 3, 4), Encoder(SMALL, 8, 4)
        model = IJEPA(*parts)
        for module in model.modules():
            for name, buffer in module._buffers.items():  # made by numpy, so still on the host
                module._buffers[name] = buffer.to("cuda")
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        masks = Masks(torch.zeros(2, 2, 5, dtype=torch.int64), torch.zeros(2, 4, 3, dtype=torch.int64))
        output = model(torch.zeros(2, 3, 32, 32, dtype=dtype), masks)
        assert output.prediction.shape == (2, 2, 4, 3, 48)
        assert output.target.shape == (2, 4, 3, 48)
        assert output.loss.device.type == "cuda" and output.loss.dtype == torch.float32


def test_predictor_defaults() -> None:
    assert PredictorConfig().width == 384 and PredictorConfig().depth == 12
