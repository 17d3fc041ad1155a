"""On a GPU: the same steps as plain PyTorch on a CPU takes, at every stage; checkpoints go from one to the other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds.model.ijepa import IJEPA
from ijepa_ds.telemetry.events import read_scalars
from tests import reference
from tests.dist import jobs
from tests.dist.launched import REPOSITORY, TINY, prepare
from tests.dist.pool import Pool, free_port
from tests.dist.test_zero import assert_same_bits, relative, worst

pytestmark = [pytest.mark.dist, pytest.mark.gpu]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Pool]:
    """One rank on the first GPU."""
    pool = Pool(1, "cuda")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def plain() -> tuple[IJEPA, list[float]]:
    """50 steps of the obvious single-process trainer on the CPU, float32."""
    cfg = jobs.tiny_config()
    return reference.train(cfg, jobs.schedule_of(cfg), 50, lambda step: jobs.batch(cfg, step, 0, 8))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_fifty_steps_equal_plain_pytorch_on_the_cpu(stage: int, gpu: Pool, tmp_path: Path, plain: tuple) -> None:
    (result,) = gpu.run("train_and_save", stage=stage, folder=str(tmp_path), steps=50)
    np.testing.assert_allclose(result["losses"], plain[1], rtol=1e-3)
    differences = worst(result["folder"], plain[0])
    assert max(differences.values()) < 1e-3, differences
    for name, parameter in plain[0].target_encoder.named_parameters():  # what the forward pass really uses
        assert relative(result["target"][name], parameter.detach().numpy()) < 1e-3, name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_tracks_float32(stage: int, gpu: Pool, tmp_path: Path, plain: tuple) -> None:
    (result,) = gpu.run("train_and_save", stage=stage, folder=str(tmp_path), steps=50, precision="bfloat16")
    np.testing.assert_allclose(result["losses"], plain[1], rtol=0.02)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resume_goes_on_where_it_was(stage: int, precision: str, gpu: Pool, tmp_path: Path) -> None:
    """What is read is what was saved, to the bit; the steps after it, as far as the kernels add up in one order."""
    settings: dict = {"stage": stage, "precision": precision}
    (straight,) = gpu.run("train_and_save", **settings, folder=str(tmp_path / "a"), steps=12, also=6)
    (again,) = gpu.run("resume_elsewhere", **settings, resume=straight["early"], folder=str(tmp_path / "b"), first=6, last=12)
    assert_same_bits(straight["early"], again["again"])
    np.testing.assert_allclose(again["losses"], straight["losses"][6:], rtol=1e-3 if precision == "float32" else 0.02)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gpu_goes_on_from_any_stage_and_back(stage: int, gpu: Pool, tmp_path: Path, plain: tuple) -> None:
    (begun,) = gpu.run("train_and_save", stage=(stage + 1) % 4, folder=str(tmp_path / "a"), steps=20)
    (done,) = gpu.run("resume_elsewhere", stage=stage, resume=begun["folder"], folder=str(tmp_path / "b"), first=20, last=50)
    assert_same_bits(begun["folder"], done["again"])
    np.testing.assert_allclose(begun["losses"] + done["losses"], plain[1], rtol=1e-3)
    assert max(worst(done["folder"], plain[0]).values()) < 1e-3


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_and_accumulated_steps_are_the_same(
    stage: int, recompute: str, gpu: Pool, tmp_path: Path, plain: tuple
) -> None:
    (result,) = gpu.run(
        "train_and_save", stage=stage, folder=str(tmp_path), steps=20, checkpointing=True, max_micro_batch=4,
        model={"recompute": recompute},
    )  # fmt: skip
    np.testing.assert_allclose(result["losses"], plain[1][:20], rtol=1e-3)


def test_weights_and_states_on_the_host_give_the_same_steps(gpu: Pool, tmp_path: Path, plain: tuple) -> None:
    host = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    (result,) = gpu.run("train_and_save", stage=3, folder=str(tmp_path), steps=20, extra=host)
    np.testing.assert_allclose(result["losses"], plain[1][:20], rtol=1e-3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(stage: int, gpu: Pool) -> None:
    (result,) = gpu.run("train_through_nan", stage=stage, precision="bfloat16", steps=4, broken=2)
    assert result["applied"] == [True, True, False, True]
    assert result["adam_step"] == 3
    for before, after in zip(*result["states"][1:3], strict=True):
        assert (before == after).all()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_host_waits_for_nothing_but_the_norm(stage: int, precision: str, gpu: Pool) -> None:
    """The optimizer waits, to learn whether the step was applied: for each of DeepSpeed's groups, not for each parameter."""
    (waits,) = gpu.run("waits_of_a_step", stage=stage, precision=precision)
    of_optimizer = waits.pop("optimizer")
    if (stage, precision) != (0, "bfloat16"):  # there DeepSpeed asks every parameter for its norm
        assert len(of_optimizer) <= 9, of_optimizer
    if stage == 3:  # DeepSpeed lets its gathers run ahead only so far
        waits = {part: [where for where in found if "streams.py" not in where] for part, found in waits.items()}
    assert not any(waits.values()), waits


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_compiled_blocks_give_the_same_steps(stage: int, gpu: Pool, tmp_path: Path, plain: tuple) -> None:
    (result,) = gpu.run("train_and_save", stage=stage, folder=str(tmp_path), steps=20, model={"compile": True})
    np.testing.assert_allclose(result["losses"], plain[1][:20], rtol=1e-3)


@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (2, ["data.loader=torchvision"]),
        (3, ["data.loader=dali", "data.decoder=mixed", "model.precision=bfloat16"]),
        (2, ["data.loader=dali", "data.decoder=cpu", "model.compile=true"]),
    ],
)
def test_a_run_from_images_to_the_end_and_on(stage: int, options: list[str], tmp_path: Path) -> None:
    """As a user starts it; then from an earlier checkpoint, as after an interruption: the same losses again."""
    if "data.loader=dali" in options:
        pytest.importorskip("nvidia.dali")
    place, launcher = prepare(tmp_path), str(Path(sys.executable).with_name("deepspeed"))
    files = ["--config", "run.yaml", "--deepspeed_config", str(REPOSITORY / "ds_configs" / f"zero{stage}.json")]
    losses = []
    for _ in range(2):
        words = [launcher, "--num_gpus", "1", "--master_port", str(free_port()), "--module", "ijepa_ds.train", *files]
        words += [*TINY, *options, "run.checkpoint_every=3"]
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        assert json.loads((place / "out" / "completed.json").read_text())["steps"] == 6
        numbers, values = read_scalars(place / "out")["loss"]
        assert list(numbers) == list(range(1, 7)) and np.isfinite(values).all()
        losses.append(values)
        shutil.rmtree(place / "out" / "checkpoints" / "step_00000006")
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    log = (place / "out" / "logs" / "rank_00000.log").read_text()
    assert "1 x cuda" in log and "a fresh start" in log and "step_00000003" in log
