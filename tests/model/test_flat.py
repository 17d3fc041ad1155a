"""A block whose parameters are two tensors computes what it computed before, and keeps the published names."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ijepa_ds.config.sizes import Size
from ijepa_ds.model import flat
from ijepa_ds.model.blocks import make_blocks, run_blocks

WIDTH = 32
OPTIONS: dict[str, dict] = {
    "plain": {},
    "norms": {"qk_norm": True, "layer_scale": 0.1},
    "swiglu": {"qkv_bias": False, "swiglu": True},
    "rope": {"rope": True, "registers": 2},
    "parallel": {"parallel": True, "qk_norm": True, "layer_scale": 0.1},
    "parallel, no bias": {"parallel": True, "qkv_bias": False},
}


def pair(options: dict, forget_weights: bool = False) -> tuple[nn.Module, nn.Module, list[Tensor]]:
    """A block, the same as two tensors, and further inputs of both."""
    (block,) = make_blocks(Size(WIDTH, 1, 4, 64, **options))
    for parameter in block.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    flattened = copy.deepcopy(block)
    flat.flatten(flattened, forget_weights)
    return block, flattened, [torch.randn(5, 2 * WIDTH // 4)] if options.get("rope") else []


def parts(block: nn.Module, of: str = "data") -> dict[str, Tensor]:
    """Values or gradients by published name."""
    found = {}
    for name, parameter in block.named_parameters():
        for part in flat.parts_of(f"b.{name}", parameter):
            values = getattr(parameter, of).flatten()[part.start : part.start + part.numel]
            found[part.name.removeprefix("b.")] = values.view(part.shape)
    return found


@pytest.mark.parametrize(
    ("checkpointing", "forget_weights"), [("none", False), ("none", True), ("full", False), ("selective", False)]
)
@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_flat_block_computes_the_same_bits(name: str, checkpointing: str, forget_weights: bool) -> None:
    block, flattened, more = pair(OPTIONS[name], forget_weights)
    assert [n for n, _ in flattened.named_parameters()] == ["decayed", "undecayed"]
    x = torch.randn(3, 5 + OPTIONS[name].get("registers", 0), WIDTH)
    results = []
    for one in (block, flattened):
        inputs = x.clone().requires_grad_()
        y = run_blocks([one], inputs, checkpointing, *more)
        y.square().sum().backward()
        results.append({"y": y.detach(), "x": inputs.grad, **parts(one, "grad")})
    assert_no_view_is_left(flattened)
    assert set(results[0]) == set(results[1])
    for key, value in results[0].items():
        assert torch.equal(results[1][key], value), key
    values, ours = dict(block.named_parameters()), parts(flattened)
    for key, value in values.items():
        assert torch.equal(ours[key], value), key


def test_what_is_decayed_is_in_one_tensor() -> None:
    for options in OPTIONS.values():
        _, flattened, _ = pair(options)
        for name, parameter in flattened.named_parameters():
            for part in flat.parts_of(f"b.{name}", parameter):
                assert flat.is_decayed(part.name, part.shape) == (name == "decayed") == (len(part.shape) > 1), part


@pytest.mark.parametrize("backend", [None, "aot_eager_decomp_partition"])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_no_weights_are_kept_between_the_passes(name: str, backend: str | None) -> None:
    """ZeRO-3 empties the parameters between the passes: no reference to the old values is left.

    `aot_eager_decomp_partition` chooses what to save as inductor does.
    """
    torch.compiler.reset()
    block, flattened, more = pair(OPTIONS[name], forget_weights=True)
    if backend:
        flattened.forward = torch.compile(flattened.forward, dynamic=True, backend=backend)  # type: ignore[method-assign]
    x, wanted = (torch.randn(3, 5 + OPTIONS[name].get("registers", 0), WIDTH) for _ in range(2))
    gradients = []
    for one in (block, flattened):
        inputs = x.clone().requires_grad_()
        y = one(inputs, *more)
        if one is flattened:
            values = [parameter.data.clone() for parameter in one.parameters()]
            for parameter in one.parameters():
                parameter.data.fill_(float("nan"))  # what autograd has kept of them is lost
                parameter.data = torch.empty(0)
            for parameter, value in zip(one.parameters(), values, strict=True):
                parameter.data = value
        (y * wanted).sum().backward()
        gradients.append({"x": inputs.grad, **parts(one, "grad")})
    for key, value in gradients[0].items():  # the compiler computes some operations in another way
        torch.testing.assert_close(gradients[1][key], value, rtol=1e-5, atol=1e-5 if backend else 0.0)


def assert_no_view_is_left(block: nn.Module) -> None:
    """A view would keep gathered weights. Recomputation ends a forward pass early, by an exception."""
    kept = [
        f"{name}.{field}"
        for name, module in block.named_modules()
        for field, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
    assert kept == []
    assert block.attn.qkv.weight is None if hasattr(block, "attn") else block.in_proj.weight is None  # type: ignore[union-attr]


def test_views_do_not_outlive_the_forward_pass() -> None:
    _, flattened, _ = pair({})
    with torch.no_grad():
        flattened(torch.randn(1, 5, WIDTH))
    assert_no_view_is_left(flattened)


def test_parameters_from_meta() -> None:
    with torch.device("meta"):
        blocks = make_blocks(Size(WIDTH, 2, 4, 64))
    blocks[1].requires_grad_(False)
    for block in blocks:
        flat.flatten(block, forget_weights=False)
    names = [part.name for part in flat.published(dict(blocks.named_parameters()))]
    flat.materialise(blocks)
    assert [part.name for part in flat.published(dict(blocks.named_parameters()))] == names and len(names) == 24
    assert {p.device.type for p in blocks.parameters()} == {"cpu"}
    assert [p.requires_grad for p in blocks.parameters()] == [True, True, False, False]
