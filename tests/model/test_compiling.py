"""Which runs compile their blocks, that no step compiles again, and that a compiled loss is the loss."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from ijepa_ds.config import MasksConfig, ModelConfig, TargetsConfig
from ijepa_ds.config.sizes import Size
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.model import compiling
from ijepa_ds.model.blocks import flatten_blocks
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.model.objective import compare
from ijepa_ds.model.vit import Encoder, Predictor, initialise

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings(**changes: object) -> ModelConfig:
    return ModelConfig(name="tiny", **changes)  # type: ignore[arg-type]


def test_a_run_compiles_on_a_gpu_unless_something_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert compiling.is_compiled(settings(), GPU) and compiling.describe(settings(), GPU) == "blocks compiled"
    assert not compiling.is_compiled(settings(), CPU)
    assert compiling.describe(settings(), CPU) == "blocks not compiled (a CPU has kernels of its own)"
    assert compiling.is_compiled(settings(compile=True), CPU) and not compiling.is_compiled(settings(compile=False), GPU)
    assert compiling.describe(settings(compile=False), GPU) == "blocks not compiled (model.compile)"
    selective = settings(activation_checkpointing=True, recompute="selective")
    assert not compiling.is_compiled(selective, GPU) and "model.recompute" in compiling.describe(selective, GPU)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert not compiling.is_compiled(settings(), GPU) and "Triton is missing" in compiling.describe(settings(), GPU)
    with pytest.raises(ValueError, match="model.compile: Triton is missing .*or leave model.compile out"):
        compiling.is_compiled(settings(compile=True), GPU)


def test_a_machine_without_a_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    for variable, device in (("CXX", CPU), ("CC", GPU)):
        monkeypatch.setenv(variable, "no-such-compiler")
        with pytest.raises(ValueError, match=f"compiler no-such-compiler is missing: install one, or set {variable}, or leave"):
            compiling.is_compiled(settings(compile=True), device)
    assert not compiling.is_compiled(settings(), GPU)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks
@pytest.mark.parametrize("options", [{}, {"rope": True, "registers": 2, "drop_path": 0.2}, {"parallel": True}], ids=str)
def test_no_step_of_fifty_with_published_masks_compiles_again(options: dict) -> None:
    """Lengths of contexts and targets change from step to step."""
    size, grid = Size(48, 2, 3, 96, **options), 12
    model = IJEPA(Encoder(size, 8, grid), Predictor(48, 24, 1, 3, grid), Encoder(size, 8, grid))
    initialise(model, 0)
    sampler = build_sampler(MasksConfig(), grid, 0, 2)
    images = torch.randn(2, 3, 8 * grid, 8 * grid)
    flatten_blocks(model, forget_weights=True)
    torch._dynamo.reset()
    with mock.patch.object(compiling, "BACKEND", "eager"):
        compiling.compile_blocks(model)
    graphs, lengths = [], set()
    for step in range(50):
        masks = sampler.sample(step, 0, 2, "cpu")
        lengths.add((masks.context.shape[-1], masks.targets.shape[-1]))
        model(images, masks).loss.backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(lengths) > 10 and graphs[2] > 0 and graphs[-1] == graphs[2], graphs


@pytest.mark.parametrize("backend", ["aot_eager_decomp_partition", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "options",
    [TargetsConfig(), TargetsConfig(layers=(1, 2), combine="mean"), TargetsConfig(layers=(1, 2), norm="tanh")],
    ids=["published", "mean", "tanh"],
)
def test_the_compiled_loss_is_the_loss(options: TargetsConfig, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets, loss and gradient in float32, for several sizes; two contexts."""
    torch._dynamo.reset()
    model = IJEPA(Encoder(Size(16, 1, 1, 16), 8, 4), Predictor(16, 16, 1, 1, 4), Encoder(Size(16, 1, 1, 16), 8, 4))
    monkeypatch.setattr(compiling, "BACKEND", backend)
    compiling.compile_blocks(model)
    assert model.compare is not compare
    width = options.width(16)
    for images, targets in ((2, 3), (5, 7)):
        outputs = 3 * torch.randn(images, 16, *([2] if options.layers else []), 16)
        prediction, patches = torch.randn(images, 2, 4, targets, width), torch.randint(16, (images, 4, targets))
        found = []
        for one in (compare, model.compare):
            inputs = prediction.clone().requires_grad_()
            loss, target = one(outputs, inputs, patches, options)
            loss.backward()
            assert inputs.grad is not None and not target.requires_grad
            found.append((loss.detach(), target, inputs.grad))
        torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(found[0][1][1, 2, 1], compare(outputs[1:2], prediction[1:2], patches[1:2], options)[1][0, 2, 1])
