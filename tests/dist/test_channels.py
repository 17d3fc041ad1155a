"""Training on images of four channels of 16 bits through the real entry point: pictures, live evaluation, resume."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds import cli
from tests.dist.launches import losses, start

pytestmark = pytest.mark.dist
CHANNELS = (
    *("model.channels=4", "data.source=deep", "data.arrays=chw", "data.scale=[40000]", "data.horizontal_flip=true"),
    *("data.mean=[0.4,0.4,0.5,0.6]", "data.std=[0.2,0.2,0.2,0.2]", "data.shown=[3,0,1]", "run.picture_every=4"),
    *("eval.every=2", "eval.train=deep", "eval.test=deep", "eval.k=3", "run.checkpoint_every=2", "run.keep_every=2"),
)


def deep(root: Path) -> None:
    """24 images of three classes, uint16 [4, H, W] from 0 to 40,000."""
    for i in range(24):
        (root / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 40_001, (4, 10, 12), dtype=np.uint16)
        np.save(root / f"class{i % 3}" / f"{i}.npy", coarse.repeat(4, axis=1).repeat(4, axis=2))


def test_four_channels_of_16_bits_train_and_resume(place: Path) -> None:
    deep(place / "deep")
    whole = start(place, *CHANNELS, ranks=2)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    seen, scores = losses(place / "out"), json.loads((place / "out" / "evaluations.json").read_text())
    assert len(seen) == 6 and [row["step"] for row in scores] == [2, 4, 6]
    for step in (4, 6):
        shutil.rmtree(place / "out" / "checkpoints" / f"step_{step:08d}")
    (place / "out" / "last_checkpoint.json").unlink()
    again = start(place, *CHANNELS, ranks=2)
    assert again.returncode == 0, again.stdout + again.stderr
    assert losses(place / "out") == seen  # to the last bit
    assert json.loads((place / "out" / "evaluations.json").read_text())[-1] == scores[-1]
    given = ["--train", place / "deep", "--test", place / "deep", "--k", "3", "--out", place / "knn", "--no-cache"]
    assert cli.main(["eval", "knn", "--checkpoint", str(place / "out"), *map(str, given)]) == 0
    found = json.loads((place / "knn" / "result.json").read_text())["scores"]["3-NN"]
    assert found == pytest.approx(scores[-1]["3-NN"], abs=1e-6)


def test_files_that_do_not_fit_end_the_start(place: Path) -> None:
    deep(place / "deep")
    three = ("model.channels=3", "data.mean=[0.4,0.4,0.5]", "data.std=[0.2,0.2,0.2]", "data.shown=null")
    refused = start(place, *CHANNELS, *three)
    text = refused.stdout + refused.stderr
    assert refused.returncode != 0 and "the images have 4 channels of uint16, but model.channels is 3" in text
    assert not (place / "out").exists()
