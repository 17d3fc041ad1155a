"""Every ZeRO stage computes what plain PyTorch computes, and goes on from its checkpoints to the last bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.config import PredictorConfig
from ijepa_ds.model.ijepa import IJEPA, build
from ijepa_ds.model.vit import initial_value, initialise
from tests import reference
from tests.dist import jobs
from tests.dist.pool import Pool

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]


@pytest.fixture(scope="module")
def plain() -> tuple[IJEPA, list[float]]:
    """50 steps of the obvious single-process trainer, float32."""
    cfg = jobs.tiny_config()
    return reference.train(cfg, jobs.schedule_of(cfg), 50, lambda step: jobs.batch(cfg, step, 0, 8))


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference against the largest value."""
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-12))


def worst(folder: str, model: IJEPA) -> dict[str, float]:
    """Largest relative difference of encoder, predictor and target between a checkpoint and a plain model."""
    reader, result = CheckpointReader(Path(folder)), {"encoder": 0.0, "predictor": 0.0, "target": 0.0}
    for name, parameter in model.named_parameters():
        part, _, rest = name.partition(".")
        theirs = parameter.detach().flatten().numpy()
        if part == "target_encoder":
            ours, part = reader.read("ema", "encoder." + rest).numpy(), "target"
        else:
            ours = reader.read("master", name).numpy()
        result[part] = max(result[part], relative(ours, theirs))
    return result


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fifty_steps_equal_plain_pytorch(stage: int, ranks: Ranks, tmp_path: Path, plain: tuple) -> None:
    results = ranks(2).run("train_and_save", stage=stage, folder=str(tmp_path), steps=50)
    differences = worst(results[0]["folder"], plain[0])
    assert max(differences.values()) < 1e-4, differences
    losses = np.mean([r["losses"] for r in results], axis=0)
    np.testing.assert_allclose(losses, plain[1], rtol=1e-4)
    for name, parameter in plain[0].target_encoder.named_parameters():  # what the forward pass really uses
        for result in results:
            assert relative(result["target"][name], parameter.detach().numpy()) < 1e-4, name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_tracks_float32(stage: int, ranks: Ranks, tmp_path: Path, plain: tuple) -> None:
    results = ranks(2).run("train_and_save", stage=stage, folder=str(tmp_path), steps=50, precision="bfloat16")
    losses = np.mean([r["losses"] for r in results], axis=0)
    np.testing.assert_allclose(losses, plain[1], rtol=0.02)
    moved, wanted = _ema(results[0]["folder"]) - _start(), _plain_ema(plain[0]) - _start()
    assert np.linalg.norm(moved - wanted) < 0.25 * np.linalg.norm(wanted)  # the EMA went the same way, as far


def _ema(folder: str) -> np.ndarray:
    return CheckpointReader(Path(folder)).read("ema", "encoder.blocks.1.mlp.fc1.weight").numpy()


def _plain_ema(model: IJEPA) -> np.ndarray:
    return model.target_encoder.blocks[1].mlp.fc1.weight.detach().flatten().numpy()


def _start() -> np.ndarray:
    return initial_value("encoder.blocks.1.mlp.fc1.weight", torch.Size((192, 48)), 3).flatten().numpy()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_is_exact_to_the_last_bit(stage: int, ranks: Ranks, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16"):
        run, whole, half = ranks(2).run, str(tmp_path / precision / "whole"), str(tmp_path / precision / "half")
        straight = run("train_and_save", stage=stage, folder=whole, steps=12, precision=precision, also=6)
        early = straight[0]["early"]
        resumed = run("train_and_save", stage=stage, folder=half, steps=12, first=6, precision=precision, resume=early)
        for rank in range(2):
            assert resumed[rank]["losses"] == straight[rank]["losses"][6:]
        assert_same_bits(straight[0]["folder"], resumed[0]["folder"])


def assert_same_bits(one: str, other: str) -> None:
    """Of two checkpoints."""
    a, b = CheckpointReader(Path(one)), CheckpointReader(Path(other))
    for kind in ("master", "exp_avg", "exp_avg_sq", "ema"):
        assert a.names(kind) == b.names(kind) and a.names(kind)
        for name in a.names(kind):
            assert torch.equal(a.read(kind, name), b.read(kind, name)), f"{kind}/{name}"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_accumulation_gives_the_same_step(stage: int, ranks: Ranks, tmp_path: Path, plain: tuple) -> None:
    results = ranks(2).run("train_and_save", stage=stage, folder=str(tmp_path), steps=20, max_micro_batch=2)
    losses = np.mean([r["losses"] for r in results], axis=0)
    np.testing.assert_allclose(losses, plain[1][:20], rtol=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_small_crops_first_equal_plain_pytorch(stage: int, ranks: Ranks, tmp_path: Path) -> None:
    cfg = jobs.tiny_config(early_steps=6)
    model, losses = reference.train(cfg, jobs.schedule_of(cfg), 12, lambda step: jobs.batch(cfg, step, 0, 8))
    results = ranks(2).run("train_and_save", stage=stage, folder=str(tmp_path), steps=12, early_steps=6)
    np.testing.assert_allclose(np.mean([r["losses"] for r in results], axis=0), losses, rtol=1e-4)
    assert max(worst(results[0]["folder"], model).values()) < 1e-4


def test_small_parameters_kept_gathered_do_not_go_stale(ranks: Ranks, tmp_path: Path, plain: tuple) -> None:
    """Stage 3 keeps small parameters gathered between steps; the target's must follow the EMA all the same."""
    extra = {"stage3_param_persistence_threshold": 1_000_000}
    results = ranks(2).run("train_and_save", stage=3, folder=str(tmp_path), steps=50, extra=extra)
    for name, parameter in plain[0].target_encoder.named_parameters():
        assert relative(results[0]["target"][name], parameter.detach().numpy()) < 1e-4, name


@pytest.mark.parametrize("stage", [2, 3])
def test_activation_checkpointing_gives_the_same_steps(stage: int, ranks: Ranks, tmp_path: Path, plain: tuple) -> None:
    results = ranks(2).run("train_and_save", stage=stage, folder=str(tmp_path), steps=20, checkpointing=True)
    losses = np.mean([r["losses"] for r in results], axis=0)
    np.testing.assert_allclose(losses, plain[1][:20], rtol=1e-4)


@pytest.mark.skipif(not AsyncIOBuilder().is_compatible(verbose=False), reason="needs libaio")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_optimizer_states_on_disk_change_no_bit(precision: str, ranks: Ranks, tmp_path: Path) -> None:
    """Some states and gradients are large enough for files, others are not.

    Half a mask token of 384 ends off a sector boundary: the predictor's gradients behind it cannot be read directly.
    """
    files = {"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path / "disk")}}
    wide = PredictorConfig(depth=1, width=384, heads=3)
    settings: dict = {"stage": 3, "precision": precision, "model": {"width": 192, "predictor": wide}}
    memory = ranks(2).run("train_and_save", **settings, folder=str(tmp_path / "memory"), steps=4)
    disk = ranks(2).run("train_and_save", **settings, folder=str(tmp_path / "a"), steps=4, also=2, extra=files)
    assert disk[0]["losses"] == memory[0]["losses"]
    assert_same_bits(memory[0]["folder"], disk[0]["folder"])
    for name, value in memory[1]["target"].items():
        assert (disk[1]["target"][name] == value).all(), name
    early = disk[0]["early"]
    resumed = ranks(2).run(
        "train_and_save", **settings, folder=str(tmp_path / "b"), first=2, steps=4, resume=early, extra=files
    )
    assert_same_bits(memory[0]["folder"], resumed[0]["folder"])
    assert list((tmp_path / "disk").glob("*/zero_stage_3/optimizer/rank1/average-*.swp"))


def test_weights_and_states_on_the_host_change_no_bit(ranks: Ranks, tmp_path: Path) -> None:
    host = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    plain = ranks(2).run("train_and_save", stage=3, precision="bfloat16", folder=str(tmp_path / "a"), steps=4)
    hosted = ranks(2).run("train_and_save", stage=3, precision="bfloat16", folder=str(tmp_path / "b"), steps=4, extra=host)
    assert_same_bits(plain[0]["folder"], hosted[0]["folder"])


OPTIONS = {
    "plain": {},
    "everything": {"qk_norm": True, "swiglu": True, "rope": True, "registers": 2, "layer_scale": 0.1, "drop_path": 0.3},
    "parallel": {"name": "22b", "mlp_hidden": 96, "registers": 1, "layer_scale": 0.1, "drop_path": 0.3},
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_options_and_selective_checkpointing_give_the_same_steps(name: str, ranks: Ranks, tmp_path: Path) -> None:
    """One process that keeps all activations, against ZeRO-3 on two ranks that recomputes some, in smaller micro-batches."""
    model = OPTIONS[name]
    alone = ranks(1).run("train_and_save", stage=0, folder=str(tmp_path / "a"), steps=12, model=model)
    again = {**model, "recompute": "selective"}
    two = ranks(2).run(
        "train_and_save", stage=3, folder=str(tmp_path / "b"), steps=12, checkpointing=True, max_micro_batch=2, model=again
    )
    np.testing.assert_allclose(np.mean([r["losses"] for r in two], axis=0), alone[0]["losses"], rtol=1e-4)
    apart, way = 0.0, 0.0  # how far the targets are from each other, and from their start
    for parameter, value in alone[0]["target"].items():
        start = initial_value("encoder." + parameter, torch.Size(value.shape), 3, model.get("layer_scale", 0.0)).numpy()
        apart += float(np.square(two[1]["target"][parameter] - value).sum())
        way += float(np.square(value - start).sum())
    # Squares. The gradient of a key's bias is 0 but for rounding, which Adam makes full steps of: 2e-4 without any option.
    assert way > 1e-6 and apart < 1e-3 * way


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "float32"), (0, "bfloat16"), (1, "float32"), (2, "float32"), (3, "float32")]
)
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(stage: int, precision: str, ranks: Ranks) -> None:
    """On one rank only; all skip that step, and go on with the next."""
    for result in ranks(2).run("train_through_nan", stage=stage, precision=precision, steps=4, broken=2):
        assert result["applied"] == [True, True, False, True]
        assert result["adam_step"] == 3
        for before, after, later in zip(*result["states"][1:], strict=True):
            assert (before == after).all() and np.isfinite(later).all()
        assert any((after != later).any() for after, later in zip(*result["states"][2:], strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_norm_is_that_of_the_whole_gradient(stage: int, precision: str, ranks: Ranks) -> None:
    cfg = jobs.tiny_config()
    model = build(cfg)
    initialise(model.encoder, cfg.run.seed, "encoder.")
    initialise(model.predictor, cfg.run.seed, "predictor.")
    model.target_encoder.load_state_dict(model.encoder.state_dict())
    model(*jobs.batch(cfg, 0, 0, 8)).loss.backward()
    expected = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    told = ranks(2).run("norm_of_first_step", stage=stage, precision=precision)
    np.testing.assert_allclose(told, expected, rtol=1e-5 if precision == "float32" else 0.02)


def test_compiled_blocks_are_refused_on_a_cpu(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="model.compile: needs a GPU"):
        ranks(1).run("train_and_save", stage=2, folder=str(tmp_path), steps=1, model={"compile": True})


def test_nothing_stays_in_shared_memory(ranks: Ranks) -> None:
    assert ranks(2).run("shared_buffers") == [[], []]
