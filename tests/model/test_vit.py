"""Shapes, names, parameter counts, precision of the networks; the forward pass on a GPU that is not there."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode

from ijepa_ds.config import ModelConfig, PredictorConfig
from ijepa_ds.config.sizes import SIZES, Size, size_of
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.attention import EntropyProbe
from ijepa_ds.model.blocks import DropPath, LayerNorm
from ijepa_ds.model.compiling import compile_blocks
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.model.vit import Encoder, Predictor, initial_value, initialise, sincos_position_embedding
from ijepa_ds.zero.publish import place_buffers

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
        ("7b", 16, 8058, 5),
        ("22b", 14, 21743, 10),  # as published (arXiv 2302.05442)
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


@pytest.mark.parametrize(("grid", "learnt"), [(3, None), (4, 4), (4, 6)])
def test_the_position_table_is_the_published_one(grid: int, learnt: int | None) -> None:
    """Written out: the first half of the channels is the column's, the second the row's; sines, then cosines."""
    width, table = 16, sincos_position_embedding(16, grid, learnt)
    for row, column in itertools.product(range(grid), repeat=2):
        expected = []
        for place in (column, row):
            place = place if learnt is None else (place + 0.5) * learnt / grid - 0.5
            angles = [place / 10000 ** (i / (width / 4)) for i in range(width // 4)]
            expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        # Other frequencies, or columns and rows exchanged, differ by 0.1 and more.
        torch.testing.assert_close(table[0, row * grid + column], torch.tensor(expected), rtol=0, atol=1e-6)


def test_the_22b_is_the_published_one() -> None:
    """Parallel blocks, normalised queries and keys, no biases of queries, keys and values."""
    with torch.device("meta"):
        block = Encoder(SIZES["22b"], 14, 2).blocks[0]
    assert set(dict(block.named_parameters())) == {
        *("in_norm.weight", "in_norm.bias", "in_proj.weight", "mlp_bias", "q_norm.weight", "q_norm.bias"),
        *("k_norm.weight", "k_norm.bias", "attn_out_proj.weight", "attn_out_proj.bias"),
        *("mlp_out_proj.weight", "mlp_out_proj.bias"),
    }
    assert block.in_proj.out_features == 3 * 6144 + 24576


OPTIONS = {
    "qk_norm": {"qk_norm": True},
    "no biases": {"qkv_bias": False},
    "parallel": {"parallel": True, "qk_norm": True, "qkv_bias": False},
    "swiglu": {"swiglu": True},
    "rope": {"rope": True},
    "registers": {"registers": 4},
    "layer scale": {"layer_scale": 0.1},
    "all of them": {"qk_norm": True, "swiglu": True, "rope": True, "registers": 2, "layer_scale": 0.1, "drop_path": 0.5},
    "parallel and more": {"parallel": True, "registers": 2, "layer_scale": 0.1, "drop_path": 0.5},
}


def made(options: dict, checkpointing: str = "none") -> Encoder:
    size = dataclasses.replace(SMALL, **options)
    encoder = Encoder(size, 8, 4, checkpointing)
    initialise(encoder, 0, layer_scale=size.layer_scale)
    return encoder


@pytest.mark.parametrize(("gate", "function"), [("silu", torch.nn.functional.silu), ("gelu", torch.nn.functional.gelu)])
def test_the_gate_of_swiglu(gate: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    mlp, x = made({"swiglu": True, "gate": gate}).blocks[0].mlp, torch.randn(3, SMALL.width)
    torch.testing.assert_close(mlp(x), mlp.fc2(function(mlp.fc1_g(x)) * mlp.fc1_x(x)))


@pytest.mark.parametrize("name", list(OPTIONS))
def test_options_keep_what_an_encoder_promises(name: str) -> None:
    """Contexts of all patches are the whole image; patches that are left out do not matter; every parameter learns."""
    encoder, images = made(OPTIONS[name]).eval(), torch.randn(2, 3, 32, 32)
    plain = Encoder(SMALL, 8, 4).eval()
    initialise(plain, 0)
    if name == "no biases":  # they start at 0, so that only what can be learnt differs
        assert {n for n, _ in plain.named_parameters()} - {n for n, _ in encoder.named_parameters()}
    else:
        assert not torch.allclose(encoder(images), plain(images))
    torch.testing.assert_close(encoder(images, torch.arange(16).expand(2, 1, 16))[:, 0], encoder(images))
    kept, changed = torch.tensor([[[1, 5, 6]], [[2, 8, 9]]]), images.clone()
    changed[:, :, 24:, :] += 1.0
    torch.testing.assert_close(encoder(images, kept), encoder(changed, kept))
    moved = encoder(images, torch.tensor([[[1, 5, 10]], [[2, 8, 13]]]))
    assert not torch.allclose(encoder(images, kept)[:, :, :2], moved[:, :, :2])
    encoder(images, kept).square().mean().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in encoder.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", list(OPTIONS))
@pytest.mark.parametrize("checkpointing", ["full", "selective"])
def test_checkpointing_changes_nothing_with_options(name: str, checkpointing: str) -> None:
    images, context = torch.randn(2, 3, 32, 32), torch.tensor([[[0, 3, 7]], [[2, 4, 9]]])
    gradients = []
    for how in ("none", checkpointing):
        encoder = made(OPTIONS[name], how)
        encoder(images, context).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_rotary_positions_are_places_and_relative() -> None:
    encoder = made({"rope": True}).eval()
    images, kept, order = torch.randn(1, 3, 32, 32), torch.tensor([0, 5, 10]), torch.tensor([2, 0, 1])
    one = encoder(images, kept[None, None])[0, 0]
    torch.testing.assert_close(encoder(images, kept[order][None, None])[0, 0], one[order])  # not the order in the list
    moved = encoder(images.roll(8, dims=3), (kept + 1)[None, None])[0, 0]  # all of them one column to the right
    torch.testing.assert_close(moved, one)
    apart = images.clone()
    apart[:, :, :8, 24:], apart[:, :, :8, :8] = images[:, :, :8, :8], images[:, :, :8, 24:]
    assert not torch.allclose(encoder(apart, torch.tensor([[[3, 5, 10]]]))[0, 0], one, atol=1e-6)  # one of them elsewhere


def test_dropped_branches_belong_to_the_sample() -> None:
    """Whatever else is in the micro-batch; never in evaluation or without gradient; as often as asked for."""
    encoder = made({"drop_path": 0.5})
    images = torch.randn(64, 3, 32, 32)
    context = torch.stack([torch.randperm(16)[:5].sort().values for _ in range(64)])[:, None]
    whole = encoder(images, context)
    torch.testing.assert_close(encoder(images[8:16], context[8:16]), whole[8:16])
    with torch.no_grad():
        still = encoder(images, context)
    torch.testing.assert_close(encoder.eval()(images, context), still)
    changed = (whole - still).flatten(1).abs().amax(1) > 1e-3
    assert changed.all()  # the two branches of the last block are each left out, or doubled
    encoder.train()(images, context)
    kept = torch.stack([m.keep.flatten() for m in encoder.modules() if isinstance(m, DropPath)])
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert float((kept == 0).float().mean()) == pytest.approx(0.5, abs=0.177)  # 4 standard errors of 128 draws


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
    for checkpointing in ("none", "full", "selective"):
        encoder = Encoder(SMALL, 8, 4, checkpointing)
        initialise(encoder, 0)
        encoder(images, context).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for one, full, selective in zip(*gradients, strict=True):
        assert torch.equal(one, full) and torch.equal(one, selective)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks
@pytest.mark.parametrize("name", ["rope", "parallel and more"])
@pytest.mark.parametrize(
    "backend",
    [
        "eager",  # what is traced, and when it is traced again; no code is generated
        pytest.param("inductor", marks=[pytest.mark.slow, pytest.mark.nightly]),  # one to two minutes of C++ compiler
    ],
)
def test_compiled_blocks_change_nothing_and_are_compiled_once(name: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of images and of patches; another one is not compiled again."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr("ijepa_ds.model.compiling.BACKEND", backend)
    plain, compiled = made(OPTIONS[name]), made(OPTIONS[name])
    compile_blocks(compiled.blocks)
    graphs = []
    for images, patches in ((2, 3), (3, 5), (5, 9), (4, 2)):
        pixels, context = torch.randn(images, 3, 32, 32), torch.arange(patches).expand(images, 1, patches)
        outputs, entropies = [], []
        for encoder in (plain, compiled):
            with EntropyProbe(2) as probe:  # as a run looks at its attention now and then
                encoder(pixels, context)
            entropies.append(probe.values())
            encoder.zero_grad()
            encoder(pixels, context).square().mean().backward()
            with torch.no_grad():
                outputs.append(encoder(pixels))
        assert entropies[0] == entropies[1] and len(entropies[0]) == 2
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
        for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and len(set(graphs[1:])) == 1, graphs


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14") and not torch.cuda.is_available(),
    reason="OLD PYTORCH: it asks a driver, which is not there, for the fake device",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_on_a_fake_gpu(dtype: torch.dtype) -> None:
    """No tensor on another device, no host synchronisation: FakeTensorMode refuses both."""
    with FakeTensorMode(), torch.device("cuda"):
        parts = Encoder(SMALL, 8, 4), Predictor(48, 24, 2, 3, 4), Encoder(SMALL, 8, 4)
        model = IJEPA(*parts)
        place_buffers(model, torch.device("cuda"))  # made by numpy, so still on the host
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        masks = Masks(torch.zeros(2, 2, 5, dtype=torch.int64), torch.zeros(2, 4, 3, dtype=torch.int64))
        output = model(torch.zeros(2, 3, 32, 32, dtype=dtype), masks)
        assert output.prediction.shape == (2, 2, 4, 3, 48)
        assert output.target.shape == (2, 4, 3, 48)
        assert output.loss.device.type == "cuda" and output.loss.dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"rope": True, "registers": 2, "layer_scale": 0.1, "drop_path": 0.2}], ids=str)
def test_the_type_of_the_residual_stream(options: dict) -> None:
    """`bfloat16` holds before and after every block of all three networks; results stay float32 and close."""
    outputs, size = [], dataclasses.replace(SMALL, **options)
    images, masks = torch.randn(2, 3, 32, 32), Masks(torch.arange(5).expand(2, 1, 5), torch.arange(3).expand(2, 4, 3))
    for kind in (torch.float32, torch.bfloat16):
        types: set[torch.dtype] = set()
        parts = [Encoder(size, 8, 4, residual=kind) for _ in range(2)]
        model = IJEPA(parts[0], Predictor(48, 24, 2, 3, 4, residual=kind), parts[1])
        initialise(model, 0, layer_scale=size.layer_scale)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        for block in [*model.encoder.blocks, *model.target_encoder.blocks, *model.predictor.predictor_blocks]:
            block.register_forward_hook(lambda _, inputs, output, types=types: types.update((inputs[0].dtype, output.dtype)))
        outputs.append(model(images.bfloat16(), masks))
        assert types == {kind} and outputs[-1].target.dtype == outputs[-1].loss.dtype == torch.float32
        assert model.encoder(images.bfloat16(), layers=(1, 2)).dtype == kind
    assert torch.equal(outputs[0].loss, outputs[1].loss) is False
    torch.testing.assert_close(outputs[1].loss, outputs[0].loss, rtol=0.01, atol=0.0)


def test_predictor_defaults() -> None:
    assert PredictorConfig().width == 384 and PredictorConfig().depth == 12
