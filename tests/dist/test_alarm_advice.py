"""A run that raised an alarm is started again as its advice says, with nothing else changed; the alarm does not come back."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ijepa_ds.telemetry.health import read_alarms
from tests.dist.launches import start

pytestmark = [pytest.mark.dist, pytest.mark.slow]
COMMON = ["run.picture_every=0", "model.precision=float32"]


def alarms(place: Path, *overrides: str, program: str = "ijepa_ds.train", run: str = "out") -> dict[str, str]:
    """The alarms of a run to its end: name -> message."""
    done = start(place, *COMMON, f"run.dir={run}", *overrides, stage=0, program=program)
    assert done.returncode == 0, done.stderr
    return {alarm.name: alarm.message for alarm in read_alarms(place / run)}


def test_a_dead_predictor_lives_at_a_lower_rate(place: Path) -> None:
    steps = "optimization.steps=40"
    said = alarms(place, steps, "optimization.lr=0.3", run="bad")
    assert "Check optimization.lr" in said["dead_predictor"]
    assert "dead_predictor" not in alarms(place, steps, "optimization.lr=0.001", run="good")


def test_a_jump_is_gone_from_a_checkpoint_before_it(place: Path) -> None:
    """The 21st step is bad; the checkpoint after 20 is the last good one."""
    steps = ["optimization.steps=24", "run.checkpoint_every=20", "run.keep_last=5"]
    said = alarms(place, *steps, program="tests.dist.one_bad_step", run="bad")
    assert "go back to a checkpoint" in said["loss_jump"]
    good = "run.resume=bad/checkpoints/step_00000020"
    assert "loss_jump" not in alarms(place, *steps, good, run="good")


def test_a_stalled_loader_keeps_up_with_smaller_images(place: Path) -> None:
    for folder, side in (("large", 3000), ("small", 40)):
        (place / folder).mkdir()
        for i in range(8):
            noise = np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(place / folder / f"{i}.jpg", quality=95)
    steps = ["optimization.steps=8", "data.loader=torchvision"]
    said = alarms(place, *steps, "data.source=large", run="bad")
    assert "store smaller images" in said["stalled_loader"]
    assert "stalled_loader" not in alarms(place, *steps, "data.source=small", run="good")
