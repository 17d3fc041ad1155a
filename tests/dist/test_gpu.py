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

from ijepa_ds.telemetry.events import read_scalars
from tests import reference
from tests.dist.launched import REPOSITORY, TINY, prepare
from tests.dist.pool import Pool, free_port
from tests.dist.test_zero import BROKEN, SETTINGS, STEPS, TRAIN, assert_same_bits, plain_run, relative, worst

pytestmark = [pytest.mark.dist, pytest.mark.gpu]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Pool]:
    """One rank on the first GPU."""
    pool = Pool(1, "cuda")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def plain(images: Path) -> reference.Trained:
    """20 steps of the reference on the CPU, float32."""
    return plain_run(images, 20)


@pytest.fixture(scope="module")
def clipped(images: Path) -> reference.Trained:
    """Steps of the reference with accumulation, clipping and a skipped step."""
    return plain_run(images, STEPS, (BROKEN,), **SETTINGS)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_loop_equals_plain_pytorch_on_the_cpu(
    stage: int, precision: str, gpu: Pool, tmp_path: Path, images: Path, clipped: reference.Trained
) -> None:
    settings: dict = {**TRAIN, **SETTINGS, "place": str(images), "run": str(tmp_path), "precision": precision}
    (result,) = gpu.run("train", stage=stage, broken=BROKEN, **settings)
    kept = [step for step in range(STEPS) if step != BROKEN]
    assert [step["applied"] for step in result["steps"]] == [step != BROKEN for step in range(STEPS)]
    tolerance = 1e-3 if precision == "float32" else 0.03
    np.testing.assert_allclose(np.array(result["losses"])[kept], np.array(clipped.losses)[kept], rtol=tolerance)
    norms = [result["steps"][step]["norm"] for step in kept]
    np.testing.assert_allclose(norms, np.array(clipped.norms)[kept], rtol=tolerance)
    if precision == "float32":
        differences = worst(result["folder"], clipped.model)
        assert max(differences.values()) < 1e-3, differences
        for name, parameter in clipped.model.target_encoder.named_parameters():  # what the forward pass really uses
            assert relative(result["target"][name], parameter.detach().numpy()) < 1e-3, name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resume_goes_on_where_it_was(stage: int, precision: str, gpu: Pool, tmp_path: Path, images: Path) -> None:
    """What is read is what was saved, to the bit; the steps after it, as far as the kernels add up in one order."""
    settings: dict = {**TRAIN, "place": str(images), "stage": stage, "precision": precision, "until": 12, "every": 6}
    (straight,) = gpu.run("train", **settings, run=str(tmp_path / "a"))
    early = straight["saved"][0]
    (again,) = gpu.run("save_again", stage=stage, precision=precision, resume=early, folder=str(tmp_path / "again"))
    assert_same_bits(early, again)
    (resumed,) = gpu.run("train", **settings, run=str(tmp_path / "b"), resume=early)
    np.testing.assert_allclose(resumed["losses"], straight["losses"][6:], rtol=1e-3 if precision == "float32" else 0.02)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gpu_goes_on_from_any_stage_and_back(
    stage: int, gpu: Pool, tmp_path: Path, images: Path, plain: reference.Trained
) -> None:
    settings: dict = {**TRAIN, "place": str(images)}
    (begun,) = gpu.run("train", **settings, stage=(stage + 1) % 4, run=str(tmp_path / "a"), until=10)
    (done,) = gpu.run("train", **settings, stage=stage, resume=begun["folder"], run=str(tmp_path / "b"), until=20)
    np.testing.assert_allclose(begun["losses"] + done["losses"], plain.losses, rtol=1e-3)
    assert max(worst(done["folder"], plain.model).values()) < 1e-3


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("recompute", ["full", "selective"])
def test_recomputed_and_accumulated_steps_are_the_same(
    stage: int, recompute: str, gpu: Pool, tmp_path: Path, images: Path, plain: reference.Trained
) -> None:
    (result,) = gpu.run(
        "train", **TRAIN, place=str(images), stage=stage, run=str(tmp_path), until=20, checkpointing=True, max_micro_batch=4,
        model={"recompute": recompute},
    )  # fmt: skip
    np.testing.assert_allclose(result["losses"], plain.losses, rtol=1e-3)


def test_weights_and_states_on_the_host_give_the_same_steps(
    gpu: Pool, tmp_path: Path, images: Path, plain: reference.Trained
) -> None:
    host = {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    (result,) = gpu.run("train", **TRAIN, place=str(images), stage=3, run=str(tmp_path), until=20, extra=host)
    np.testing.assert_allclose(result["losses"], plain.losses, rtol=1e-3)


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
def test_compiled_blocks_give_the_same_steps(
    stage: int, gpu: Pool, tmp_path: Path, images: Path, plain: reference.Trained
) -> None:
    settings: dict = {**TRAIN, "place": str(images), "run": str(tmp_path), "until": 20, "model": {"compile": True}}
    (result,) = gpu.run("train", stage=stage, **settings)
    np.testing.assert_allclose(result["losses"], plain.losses, rtol=1e-3)


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
