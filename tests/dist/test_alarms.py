"""Runs made to fail raise the alarm for it: in health.jsonl, on the terminal, in TensorBoard. Each is a real run."""

from pathlib import Path

import numpy as np
import pytest

from ijepa_ds.telemetry.events import read_scalars
from ijepa_ds.telemetry.health import read_alarms
from tests.dist.launches import start

pytestmark = [pytest.mark.dist, pytest.mark.slow]


FAILURES = {
    "partial_collapse": ("ijepa_ds.train", ["optimization.lr=0.05", "optimization.ema=[0.5, 0.9]", "optimization.steps=24"]),
    "loss_jump": ("tests.dist.one_bad_step", ["optimization.steps=24"]),
    "dead_predictor": ("tests.dist.dead_predictor", ["optimization.steps=12"]),
    "stalled_loader": ("tests.dist.slow_images", ["optimization.steps=7"]),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_run_made_to_fail_raises_its_alarm(name: str, place: Path) -> None:
    module, overrides = FAILURES[name]
    done = start(place, "run.dir=out", "run.picture_every=0", "model.precision=float32", *overrides, stage=0, program=module)
    assert done.returncode == 0, done.stderr
    alarms = [alarm for alarm in read_alarms(place / "out") if alarm.name == name]
    assert alarms, done.stdout + done.stderr
    assert f"ALARM {name} at step {alarms[0].step}" in done.stdout + done.stderr
    scalars = read_scalars(place / "out")
    assert scalars["alarms/count"][1][-1] >= 1
    assert f"alarms/{name}/text_summary" in text_tags(place / "out")


def test_the_advice_of_a_collapse_helps(place: Path) -> None:
    """`Lower optimization.lr, raise optimization.ema`: of the run that raised the alarm, with both changed and nothing else."""
    assert FAILURES["partial_collapse"][1][:2] == ["optimization.lr=0.05", "optimization.ema=[0.5, 0.9]"]
    followed = [
        "optimization.lr=0.0005",
        "optimization.start_lr=0.0001",
        "optimization.ema=[0.99, 1.0]",
        "optimization.steps=24",
    ]
    done = start(place, "run.dir=out", "run.picture_every=0", "model.precision=float32", *followed, stage=0)
    assert done.returncode == 0, done.stderr
    assert [alarm for alarm in read_alarms(place / "out") if alarm.name == "partial_collapse"] == []


def test_a_run_as_it_should_be_raises_none(place: Path) -> None:
    healthy = ["optimization.steps=12", "optimization.warmup_steps=4", "model.precision=float32"]
    done = start(place, "run.dir=out", *healthy, stage=3, ranks=2)
    assert done.returncode == 0, done.stderr
    assert read_alarms(place / "out") == []
    scalars = read_scalars(place / "out")
    steps, entropy = scalars["probe/attention_entropy"]
    assert steps.tolist() == [1, 2, 4, 6, 8, 10, 12] and np.all((entropy > 0.9999) & (entropy <= 1.0))
    assert np.array_equal(entropy, scalars["probe/attention_entropy/block_00"][1])  # it has one block
    assert np.all(scalars["speed/matmul_share"][1] > 0)
    distance = scalars["probe/ema_distance"][1]
    np.testing.assert_allclose(distance, [0.00479, 0.01143, 0.03036, 0.04740, 0.05720, 0.06044, 0.06065], rtol=0.02)


def text_tags(run_dir: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run_dir)).Reload().Tags()["tensors"]
