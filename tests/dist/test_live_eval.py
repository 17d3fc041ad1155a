"""`eval.every` scores what `ijepa-ds eval` scores, at every ZeRO stage, and the run does not notice."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds import cli
from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.telemetry.dashboard import LAYOUT
from ijepa_ds.telemetry.events import read_scalars
from tests.dist.launches import losses, start
from tests.evals.test_dense import write_dense
from tests.evals_cases import write_images

pytestmark = pytest.mark.dist
EVAL = ("eval.every=2", "eval.train=votes", "eval.test=scored", "eval.k=5", "run.checkpoint_every=2", "run.keep_last=1")


def labelled(place: Path) -> None:
    write_images(place / "votes", {"ant": 9, "bee": 8}, size=48)
    write_images(place / "scored", {"ant": 7, "bee": 6}, size=48)


@pytest.mark.parametrize("stage", [1, 3])
def test_live_scores_are_those_of_the_checkpoint_and_training_goes_on_as_before(place: Path, stage: int) -> None:
    labelled(place)
    plain = start(place, "run.dir=plain", ranks=2, stage=stage)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    live = start(place, "run.dir=live", *EVAL, ranks=2, stage=stage)
    assert live.returncode == 0, live.stdout + live.stderr
    assert losses(place / "live") == losses(place / "plain")  # to the last bit

    history = json.loads((place / "live" / "evaluations.json").read_text())
    assert [entry["step"] for entry in history] == [2, 4, 6]
    curves = read_scalars(place / "live")
    assert curves["eval/5-NN"][0].tolist() == curves["eval/RankMe"][0].tolist() == [2, 4, 6]
    for chart, (_, patterns) in ((name, told) for category in LAYOUT.values() for name, told in category.items()):
        assert any(re.search(str(pattern), tag) for pattern in patterns for tag in curves), f"nothing to see in {chart!r}"
    best = json.loads((place / "live" / "best.json").read_text())
    assert best == max(history, key=lambda entry: entry["5-NN"])
    kept = {path.name for path in (place / "live" / "checkpoints").glob("step_*")}
    assert kept == {"step_00000006", f"step_{best['step']:08d}"}  # keep_last, and the best

    options = ["--train", str(place / "votes"), "--test", str(place / "scored"), "--device", "cpu"]
    for task, name, more in (("knn", "5-NN", ("--k", "5")), ("rank", "RankMe", ("--views", "2"))):
        out = place / f"out_{task}"
        assert cli.main(["eval", task, "--checkpoint", str(place / "live"), *options, *more, "--out", str(out)]) == 0
        np.testing.assert_allclose(json.loads((out / "result.json").read_text())["scores"][name], history[-1][name], rtol=1e-5)


def test_a_resumed_run_forgets_later_scores_and_repeats_them(place: Path) -> None:
    labelled(place)
    assert start(place, *EVAL, "run.keep_every=2").returncode == 0
    before = json.loads((place / "out" / "evaluations.json").read_text())
    for step in (4, 6):
        shutil.rmtree(place / "out" / "checkpoints" / f"step_{step:08d}")
    (place / "out" / "last_checkpoint.json").unlink()
    again = start(place, *EVAL, "run.keep_every=2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((place / "out" / "evaluations.json").read_text()) == before


def test_a_run_that_died_in_its_last_evaluation_makes_it_up(place: Path) -> None:
    """The last checkpoint is there, its scores are not."""
    labelled(place)
    assert start(place, *EVAL, ranks=2).returncode == 0
    history = place / "out" / "evaluations.json"
    before, best = json.loads(history.read_text()), (place / "out" / "best.json").read_text()
    history.write_text(json.dumps(before[:-1]))
    (place / "out" / "completed.json").unlink()
    again = start(place, *EVAL, ranks=2)
    assert again.returncode == 0 and "done: 6 steps" in again.stdout, again.stdout + again.stderr
    assert json.loads(history.read_text()) == before and (place / "out" / "best.json").read_text() == best
    assert json.loads((place / "out" / "completed.json").read_text()) == {"steps": 6}  # no loss: no step was done
    assert read_scalars(place / "out")["eval/5-NN"][0].tolist() == [2, 4, 6]
    assert "nothing to do" in start(place, *EVAL, ranks=2).stdout
    branched = (f"run.branch_from={place / 'out' / 'checkpoints' / 'step_00000006'}", "optimization.steps=6")
    other = start(place, *EVAL, "run.dir=branched", *branched, ranks=2)
    assert other.returncode == 0 and not (place / "branched" / "best.json").exists(), other.stdout + other.stderr


def dense(place: Path) -> None:
    for name, count, seed in (("votes", 9, 0), ("scored", 7, 1)):
        write_dense(place / name, count, seed, (48, 72))


@pytest.mark.parametrize("task", ["segment", "depth"])
def test_live_dense_scores_are_those_of_the_checkpoint(place: Path, task: str) -> None:
    dense(place)
    plain = start(place, "run.dir=plain", ranks=2, stage=3)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    live = start(place, "run.dir=live", *EVAL, f"eval.task={task}", ranks=2, stage=3)
    assert live.returncode == 0, live.stdout + live.stderr
    assert losses(place / "live") == losses(place / "plain")  # to the last bit
    history = json.loads((place / "live" / "evaluations.json").read_text())
    assert [entry["step"] for entry in history] == [2, 4, 6]
    name, tag = {"segment": ("mIoU, linear", "eval/mIoU_linear"), "depth": ("delta1", "eval/delta1")}[task]
    assert read_scalars(place / "live")[tag][0].tolist() == [2, 4, 6]
    best = json.loads((place / "live" / "best.json").read_text())
    assert best == max(history, key=lambda entry: entry[name])
    options = ["--train", str(place / "votes"), "--test", str(place / "scored"), "--device", "cpu", "--out", str(place / "out")]
    assert cli.main(["eval", task, "--checkpoint", str(place / "live"), *options]) == 0
    scores = json.loads((place / "out" / "result.json").read_text())["scores"]
    assert scores == pytest.approx({key: value for key, value in history[-1].items() if key != "step"}, rel=0.02)


def test_dense_sources_are_checked_before_training(place: Path) -> None:
    dense(place)
    (place / "scored" / "masks" / "a" / "3.png").unlink()
    for change, message in [
        (("eval.task=segment",), "eval.test: 1 of 7 images have no file of labels"),
        (("eval.task=depth", "eval.labels=far"), "eval.train: there is no folder"),
        (("eval.labels=masks",), "eval.labels: eval.task is knn"),
        (("eval.task=count",), "eval.task"),
    ]:
        done = start(place, *EVAL, *change)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert list_steps(place / "out") == []


def test_a_resumed_run_repeats_dense_scores(place: Path) -> None:
    dense(place)
    assert start(place, *EVAL, "eval.task=segment", "run.keep_every=2").returncode == 0
    before = json.loads((place / "out" / "evaluations.json").read_text())
    for step in (4, 6):
        shutil.rmtree(place / "out" / "checkpoints" / f"step_{step:08d}")
    (place / "out" / "last_checkpoint.json").unlink()
    again = start(place, *EVAL, "eval.task=segment", "run.keep_every=2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((place / "out" / "evaluations.json").read_text()) == before


def test_sources_are_checked_before_training(place: Path) -> None:
    labelled(place)
    for change, message in [
        (("eval.test=gone",), "eval.test"),
        (("eval.train=null",), "eval.train"),
        (("eval.every=3",), "multiple of run.checkpoint_every"),
        (("eval.k=18",), "above the 17 images of eval.train"),
        (("eval.k=5", "eval.max_train=4"), "eval.k: 5 is above the 4 images of eval.max_train"),
    ]:
        done = start(place, *EVAL, *change)
        assert done.returncode == 2 and message in done.stderr, done.stderr
        assert list_steps(place / "out") == []
