"""Whole runs whose storage or evaluation fails: what the user sees, and how the same command continues."""

import json
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from tests.dist.launches import start
from tests.dist.test_live_eval import EVAL, labelled

pytestmark = pytest.mark.dist


def test_storage_that_stays_broken_stops_the_run_with_75_and_condemns_no_image(place: Path) -> None:
    options = ("run.checkpoint_every=2", "data.readers=1", "data.prefetch=1", "data.loader=torchvision", "data.max_bad=0")
    options += ("optimization.steps=16",)
    done = start(place, *options, "data.storage_timeout=1", program="tests.dist.failing_storage")
    assert done.returncode == 75, done.stdout + done.stderr
    assert (
        "Input/output error for" in done.stderr and "(data.storage_timeout: 1). This is a fault of the storage" in done.stderr
    )
    assert "the same command continues; exit code 75" in done.stderr and "Traceback" not in done.stderr
    assert "storage does not answer" in done.stdout
    assert not (place / "out" / "stopped.json").exists() and not (place / "out" / "bad_samples.jsonl").exists()
    last = list_steps(place / "out")[-1]  # what is read ahead when the storage breaks is still trained on
    assert last in (2, 4, 6, 8)
    again = start(place, *options)
    assert again.returncode == 0 and f"step_{last:08} (step {last})" in again.stdout, again.stdout + again.stderr


def test_a_failed_evaluation_on_one_rank_is_a_warning_after_the_save(place: Path) -> None:
    labelled(place)
    done = start(place, *EVAL, "run.keep_last=9", ranks=2, program="tests.dist.broken_evaluation")
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout
    assert "evaluation at step 4 skipped, training goes on: rank 1 on " in text and "RuntimeError: out of memory" in text
    assert text.index("checkpoint of step 4 is safe") < text.index("evaluation at step 4 skipped")
    history = json.loads((place / "out" / "evaluations.json").read_text())
    assert [entry["step"] for entry in history] == [2, 6] and list_steps(place / "out") == [2, 4, 6]
