"""Which runs compile their blocks, and that no step compiles again."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from ijepa_ds.config import MasksConfig, ModelConfig
from ijepa_ds.config.sizes import Size
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.model import compiling
from ijepa_ds.model.blocks import flatten_blocks
from ijepa_ds.model.ijepa import IJEPA
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
