"""The real training loop computes what plain PyTorch computes, at every ZeRO stage, and resumes to the last bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.ops.op_builder import AsyncIOBuilder

from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.config import Config, PredictorConfig
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.model.flops import training_flops
from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.model.vit import initial_value
from ijepa_ds.telemetry.events import read_scalars
from ijepa_ds.weights import open_source
from ijepa_ds.weights.encoder import build_encoder
from tests import reference
from tests.dist import loop
from tests.dist.pool import Pool

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]
TRAIN = {"module": "tests.dist.loop"}
STEPS, BROKEN = 12, 5
# Every value that the loop must pass on differs from its default. The limit of the norm is below most norms.
SETTINGS: dict = {
    "steps": STEPS,
    "warmup_steps": 3,
    "weight_decay": 0.1,
    "final_weight_decay": 0.3,
    "ema": (0.9, 1.0),
    "betas": (0.8, 0.95),
    "eps": 1e-4,
    "clip_grad": 0.15,
    "max_micro_batch": 2,
    "data": {"horizontal_flip": True, "color_jitter": (0.4, 0.4, 0.2, 0.1), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25)},
}


def plain_run(place: Path, until: int, skipped: tuple[int, ...] = (), **settings: object) -> reference.Trained:
    """The slow reference on the same images."""
    cfg = loop.config_of(str(place), "unused", **settings)
    return reference.train(cfg, loop.schedule_of(cfg), until, reference.Batches(cfg), skipped)


@pytest.fixture(scope="module")
def plain(images: Path) -> reference.Trained:
    """20 steps without accumulation, clipping or faults."""
    return plain_run(images, 20)


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


def assert_same_bits(one: str, other: str) -> None:
    """Of two checkpoints."""
    a, b = CheckpointReader(Path(one)), CheckpointReader(Path(other))
    for kind in ("master", "exp_avg", "exp_avg_sq", "ema"):
        assert a.names(kind) == b.names(kind) and a.names(kind)
        for name in a.names(kind):
            assert torch.equal(a.read(kind, name), b.read(kind, name)), f"{kind}/{name}"


def mean_losses(results: list[dict]) -> np.ndarray:
    """Of each step over micro-batches and ranks."""
    return np.mean([result["losses"] for result in results], axis=0)


def of_the_global_batch(results: list[dict], step: int, what: str) -> np.ndarray:
    """Images or masks of a step in the order of the global batch: micro-batch, rank, position."""
    ranks = [[micro[what] for micro in result["steps"][step]["micros"]] for result in results]
    return np.concatenate([part for micro in zip(*ranks, strict=True) for part in micro])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("world", [1, 2])
def test_the_loop_equals_plain_pytorch(
    world: int, stage: int, precision: str, ranks: Ranks, tmp_path: Path, images: Path, clipped: reference.Trained
) -> None:
    """With accumulation, clipping, augmentations, and one step whose loss is not finite on one rank."""
    settings = {**SETTINGS, "max_micro_batch": 4 // world, "precision": precision}
    results = ranks(world).run(
        "train", **TRAIN, place=str(images), run=str(tmp_path), stage=stage, broken=BROKEN, inputs=True, **settings
    )
    cfg = loop.config_of(str(images), "unused", **settings)
    schedule, batches = loop.schedule_of(cfg), reference.Batches(cfg)
    exact = precision == "float32"
    for step in range(STEPS):
        inputs, masks = batches(step)
        seen = of_the_global_batch(results, step, "images")
        np.testing.assert_array_equal(seen, inputs.to(getattr(torch, precision)).float().numpy())
        np.testing.assert_array_equal(of_the_global_batch(results, step, "context"), masks.context.numpy())
        np.testing.assert_array_equal(of_the_global_batch(results, step, "targets"), masks.targets.numpy())
        for result in results:
            record = result["steps"][step]
            assert len(record["micros"]) == 2 and record["applied"] == (step != BROKEN)
            assert record["settings"] == (schedule.lr(step), schedule.weight_decay(step), schedule.momentum(step))
            if step != BROKEN:
                assert record["norm"] == pytest.approx(clipped.norms[step], rel=1e-4 if exact else 0.03)
    kept = [step for step in range(STEPS) if step != BROKEN]
    np.testing.assert_allclose(mean_losses(results)[kept], np.array(clipped.losses)[kept], rtol=1e-4 if exact else 0.02)
    manifest = CheckpointReader(Path(results[0]["folder"])).manifest
    assert (manifest["step"], manifest["adam_step"]) == (STEPS, STEPS - 1)
    assert_points_agree(tmp_path, results, schedule, cfg)
    if exact:
        differences = worst(results[0]["folder"], clipped.model)
        assert max(differences.values()) < 1e-4, differences
        for name, parameter in clipped.model.target_encoder.named_parameters():  # what the forward pass uses
            for result in results:
                assert relative(result["target"][name], parameter.detach().numpy()) < 1e-4, name
    else:
        name = "encoder.blocks.1.mlp.fc1.weight"
        start = initial_value(name, torch.Size((192, 48)), cfg.run.seed).flatten().numpy()
        moved = CheckpointReader(Path(results[0]["folder"])).read("ema", name).numpy() - start
        wanted = clipped.model.target_encoder.blocks[1].mlp.fc1.weight.detach().flatten().numpy() - start
        assert np.linalg.norm(moved - wanted) < 0.1 * np.linalg.norm(wanted)


def assert_points_agree(run: Path, results: list[dict], schedule: Schedule, cfg: Config) -> None:
    """The points in TensorBoard are those of all ranks, under the number of steps done."""
    points = {tag: dict(zip(*read_scalars(run)[tag], strict=True)) for tag in read_scalars(run)}
    losses = mean_losses(results)
    for done, steps in ((10, range(10)), (12, range(10, 12))):  # run.log_every is 10, and the last step
        kept = [step for step in steps if step != BROKEN]
        if BROKEN not in steps:  # in the broken step one loss of several is missing
            assert points["loss"][done] == pytest.approx(losses[kept].mean(), rel=1e-5)
        assert points["schedule/lr"][done] == pytest.approx(schedule.lr(done - 1), rel=1e-6)
        assert points["schedule/weight_decay"][done] == pytest.approx(schedule.weight_decay(done - 1), rel=1e-6)
        assert points["schedule/ema_momentum"][done] == pytest.approx(schedule.momentum(done - 1), rel=1e-6)
        assert points["gradient/norm"][done] == pytest.approx(results[0]["steps"][done - 1]["norm"], rel=1e-5)
        assert points["optimizer/skipped_steps"][done] == 1
        rate = points["speed/images_per_second"][done]
        assert rate * points["speed/seconds_per_step"][done] == pytest.approx(cfg.optimization.batch_size, rel=1e-4)
        flops = training_flops(cfg, points["tokens/context"][done], points["tokens/target"][done])
        share = rate * flops / (loop.PEAK * len(results))
        assert points["speed/matmul_share"][done] == pytest.approx(share, rel=1e-4)
        assert "speed/mfu" not in points  # a CPU has no data sheet


@pytest.fixture(scope="module")
def clipped(images: Path) -> reference.Trained:
    """The same run by the reference."""
    result = plain_run(images, STEPS, (BROKEN,), **SETTINGS)
    assert sum(norm > SETTINGS["clip_grad"] for norm in result.norms) > STEPS // 2  # the limit is reached
    return result


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_resume_is_exact_to_the_last_bit(stage: int, ranks: Ranks, tmp_path: Path, images: Path) -> None:
    for precision in ("float32", "bfloat16"):
        place = tmp_path / precision
        settings: dict = {"place": str(images), "stage": stage, "precision": precision, "until": 12, "every": 6, **TRAIN}
        straight = ranks(2).run("train", run=str(place / "whole"), **settings)
        early = straight[0]["saved"][0]
        resumed = ranks(2).run("train", run=str(place / "half"), resume=early, **settings)
        for rank in range(2):
            assert resumed[rank]["losses"] == straight[rank]["losses"][6:]
        assert_same_bits(straight[0]["folder"], resumed[0]["folder"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_bfloat16_residual_stream(stage: int, ranks: Ranks, tmp_path: Path, images: Path, plain: reference.Trained) -> None:
    """Losses are those of float32 as far as bfloat16 goes, a resumed run has the same bits, and the weights open."""
    settings: dict = {"place": str(images), "stage": stage, "precision": "bfloat16", "until": 8, "every": 4, **TRAIN}
    settings |= {"model": {"residual": "bfloat16", "compile": True}, "backend": "aot_eager"}
    straight = ranks(2).run("train", run=str(tmp_path / "whole"), **settings)
    np.testing.assert_allclose(mean_losses(straight), plain.losses[:8], rtol=0.02)
    resumed = ranks(2).run("train", run=str(tmp_path / "half"), resume=straight[0]["saved"][0], **settings)
    assert_same_bits(straight[0]["folder"], resumed[0]["folder"])
    source = open_source(Path(straight[0]["folder"]))
    assert source.config is not None and source.config.model.residual == "bfloat16"
    assert build_encoder(source, "target").residual == torch.float32  # evaluations


@pytest.mark.parametrize("stage", [0, 3])
def test_small_crops_first_equal_plain_pytorch(stage: int, ranks: Ranks, tmp_path: Path, images: Path) -> None:
    expected = plain_run(images, 12, early_steps=6)
    results = ranks(2).run(
        "train", **TRAIN, place=str(images), run=str(tmp_path), stage=stage, until=12, early_steps=6
    )  # fmt: skip
    np.testing.assert_allclose(mean_losses(results), expected.losses, rtol=1e-4)
    assert max(worst(results[0]["folder"], expected.model).values()) < 1e-4


OPTIONS_OF_ZERO: list = [
    pytest.param({"extra": {"stage3_param_persistence_threshold": 1_000_000}}, id="kept-gathered"),
    pytest.param({"checkpointing": True}, id="recomputed"),
]


@pytest.mark.parametrize("options", OPTIONS_OF_ZERO)
def test_options_of_stage_3_equal_plain_pytorch(
    options: dict, ranks: Ranks, tmp_path: Path, images: Path, plain: reference.Trained
) -> None:
    """Stage 3 keeps small parameters gathered between steps; the target's must follow the EMA all the same."""
    results = ranks(2).run("train", **TRAIN, place=str(images), run=str(tmp_path), stage=3, until=20, **options)
    np.testing.assert_allclose(mean_losses(results), plain.losses, rtol=1e-4)
    for name, parameter in plain.model.target_encoder.named_parameters():
        assert relative(results[0]["target"][name], parameter.detach().numpy()) < 1e-4, name


@pytest.mark.parametrize(("stage", "shared"), [(1, False), (1, True), (2, False), (2, True), (3, False)])
def test_a_block_larger_than_a_bucket_equals_plain_pytorch(
    stage: int, shared: bool, ranks: Ranks, tmp_path: Path, images: Path, plain: reference.Trained
) -> None:
    """The gradient of a block's larger tensor has 27,648 elements; `shared`: by reduce-scatter and all-to-all."""
    extra = {"reduce_bucket_size": 10_000} | ({"use_multi_rank_bucket_allreduce": shared} if stage < 3 else {})
    results = ranks(2).run("train", **TRAIN, place=str(images), run=str(tmp_path), stage=stage, until=20, extra=extra)
    np.testing.assert_allclose(mean_losses(results), plain.losses, rtol=1e-4)
    assert max(worst(results[0]["folder"], plain.model).values()) < 1e-4


@pytest.mark.skipif(not AsyncIOBuilder().is_compatible(verbose=False), reason="needs libaio")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_optimizer_states_on_disk_change_no_bit(precision: str, ranks: Ranks, tmp_path: Path, images: Path) -> None:
    """Some states and gradients are large enough for files, others are not.

    Half a mask token of 384 ends off a sector boundary: the predictor's gradients behind it cannot be read directly.
    """
    files = {"offload_optimizer": {"device": "nvme", "nvme_path": str(tmp_path / "disk")}}
    wide = PredictorConfig(depth=1, width=384, heads=3)
    settings: dict = {"stage": 3, "precision": precision, "model": {"width": 192, "predictor": wide}, "until": 4, "every": 2}
    settings |= {"place": str(images), **TRAIN}
    memory = ranks(2).run("train", **settings, run=str(tmp_path / "memory"))
    disk = ranks(2).run("train", **settings, run=str(tmp_path / "a"), extra=files)
    assert disk[0]["losses"] == memory[0]["losses"]
    assert_same_bits(memory[0]["folder"], disk[0]["folder"])
    for name, value in memory[1]["target"].items():
        assert (disk[1]["target"][name] == value).all(), name
    early = disk[0]["saved"][0]
    resumed = ranks(2).run("train", **settings, run=str(tmp_path / "b"), resume=early, extra=files)
    assert_same_bits(memory[0]["folder"], resumed[0]["folder"])
    assert list((tmp_path / "disk").glob("*/zero_stage_3/optimizer/rank1/average-*.swp"))


def test_weights_and_states_on_the_host_change_no_bit(ranks: Ranks, tmp_path: Path, images: Path) -> None:
    host = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    settings: dict = {"place": str(images), "stage": 3, "precision": "bfloat16", "until": 4, **TRAIN}
    plain = ranks(2).run("train", run=str(tmp_path / "a"), **settings)
    hosted = ranks(2).run("train", run=str(tmp_path / "b"), extra=host, **settings)
    assert_same_bits(plain[0]["folder"], hosted[0]["folder"])


OPTIONS = {
    "everything": {"qk_norm": True, "swiglu": True, "rope": True, "registers": 2, "layer_scale": 0.1, "drop_path": 0.3},
    "parallel": {"name": "22b", "mlp_hidden": 96, "registers": 1, "layer_scale": 0.1, "drop_path": 0.3},
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_options_and_selective_checkpointing_give_the_same_steps(name: str, ranks: Ranks, tmp_path: Path, images: Path) -> None:
    """One process that keeps all activations, against ZeRO-3 on two ranks that recomputes some, in smaller micro-batches."""
    model = OPTIONS[name]
    settings: dict = {"place": str(images), "until": 12, **TRAIN}
    alone = ranks(1).run("train", stage=0, run=str(tmp_path / "a"), model=model, **settings)
    again = {**model, "recompute": "selective"}
    two = ranks(2).run(
        "train", stage=3, run=str(tmp_path / "b"), checkpointing=True, max_micro_batch=2, model=again, **settings
    )
    np.testing.assert_allclose(mean_losses(two), alone[0]["losses"], rtol=1e-4)
    apart, way = 0.0, 0.0  # how far the targets are from each other, and from their start
    for parameter, value in alone[0]["target"].items():
        start = initial_value("encoder." + parameter, torch.Size(value.shape), 3, model.get("layer_scale", 0.0)).numpy()
        apart += float(np.square(two[1]["target"][parameter] - value).sum())
        way += float(np.square(value - start).sum())
    # Squares. The gradient of a key's bias is 0 but for rounding, which Adam makes full steps of: 2e-4 without any option.
    assert way > 1e-6 and apart < 1e-3 * way


RELEASED = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}  # nothing stays gathered between passes


@pytest.mark.parametrize(
    ("world", "stage", "checkpointing"),
    [(1, 0, False), (2, 0, False), (2, 1, False), (1, 2, True), (2, 2, False), (1, 3, False), (2, 3, False), (2, 3, True)],
)
def test_compiled_blocks_give_the_same_steps(
    world: int, stage: int, checkpointing: bool, ranks: Ranks, tmp_path: Path, images: Path, plain: reference.Trained
) -> None:
    """The compiler sees whole weights at stage 3: their gathering stays outside what it compiles."""
    settings: dict = {"extra": RELEASED} if stage == 3 else {}
    settings |= {**TRAIN, "place": str(images), "run": str(tmp_path), "model": {"compile": True}, "backend": "aot_eager"}
    results = ranks(world).run("train", stage=stage, until=6, checkpointing=checkpointing, **settings)
    np.testing.assert_allclose(mean_losses(results), plain.losses[:6], rtol=1e-5)
    norms = [step["norm"] for step in results[0]["steps"]]
    np.testing.assert_allclose(norms, plain.norms[:6], rtol=1e-4)


@pytest.mark.nightly  # the compiler of the CPU takes two minutes
def test_compiled_by_inductor_at_stage_3(ranks: Ranks, tmp_path: Path, images: Path, plain: reference.Trained) -> None:
    settings: dict = {**TRAIN, "place": str(images), "run": str(tmp_path), "model": {"compile": True}, "extra": RELEASED}
    results = ranks(1).run("train", stage=3, until=6, timeout=900, **settings)
    np.testing.assert_allclose(mean_losses(results), plain.losses[:6], rtol=1e-5)


def test_nothing_stays_in_shared_memory(ranks: Ranks) -> None:
    assert ranks(2).run("shared_buffers") == [[], []]
