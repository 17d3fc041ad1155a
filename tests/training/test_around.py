"""The members of the list around a step, one by one; whole runs are tested in tests/dist."""

from __future__ import annotations

import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ijepa_ds.cluster.stop import Stopped
from ijepa_ds.errors import CheckpointError, StorageError
from ijepa_ds.training.around import BadImages, Checkpoints, Evaluations, Made, Report, Saves, Skips, Stops
from ijepa_ds.training.slowest import unpack

FIGURES = unpack([0, 0, 0])


class Recorder:
    """Notes every method call with its arguments; `answers` holds return values by method name."""

    def __init__(self, **answers: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers = answers

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            self.calls.append((name, *arguments))
            return self.answers.get(name)

        return call

    def names(self) -> list[str]:
        return [name for name, *_ in self.calls]


def made(step: int, *, last: bool = False, applied: bool = True, asked: int = 0) -> Made:
    nothing: Any = None
    return Made(step=step, last=last, applied=applied, losses=[torch.tensor(1.5)], result=nothing, masks=nothing, asked=asked)


def make_run(**parts: Any) -> Any:
    cfg = SimpleNamespace(run=SimpleNamespace(log_every=5))
    plan, schedule = SimpleNamespace(batch_size=8, micro_batch=4), SimpleNamespace(total_steps=20)
    return SimpleNamespace(cfg=cfg, plan=plan, schedule=schedule, facts={"images": 24}, **parts)


@pytest.mark.parametrize("found", [0, 2])
def test_bad_images_are_exchanged_when_a_rank_has_found_some(found: int) -> None:
    bad = Recorder()
    BadImages(make_run(bad=bad), SimpleNamespace(loader="loader")).after_step(replace(made(3), bad=found))  # type: ignore[arg-type]
    assert bad.calls == ([("agree", "loader")] if found else [])


def test_the_report_gets_the_pixels_of_the_last_micro_batch() -> None:
    reporter, pixels, phases = Recorder(), torch.zeros(1), list[str]()
    run = make_run(bad=[1, 2, 3], watch=SimpleNamespace(doing=phases.append))
    Report(run, SimpleNamespace(pixels=pixels), reporter).after_step(replace(made(6), figures=FIGURES))  # type: ignore[arg-type]
    assert phases == ["writing metrics and logs"]  # on a disk that may hang
    assert reporter.calls == [("after_step", 6, None, None, pixels, True, 3, FIGURES)]


def test_skipped_steps_are_counted_with_their_losses() -> None:
    skipped, step = Recorder(), made(2, applied=False)
    Skips(skipped).after_step(step)  # type: ignore[arg-type]
    assert skipped.calls == [("note", 2, False, step.losses)]


def test_a_save_goes_on() -> None:
    saver, step = Recorder(), made(2)
    step.writing = True
    Saves(saver).after_step(step)  # type: ignore[arg-type]
    assert saver.calls == [("advance", 3, True)]


@pytest.mark.parametrize("due", [True, False])
def test_an_evaluation_is_made_when_it_is_due(due: bool) -> None:
    live, reporter, marks = Recorder(due=due, run={"eval/20-NN": 40.0}), Recorder(), []
    signs: list[str] = []
    run = make_run(live=live, watch=SimpleNamespace(alive=signs.append))
    saver = Recorder(finish=True)
    Evaluations(run, reporter, saver, marks.append).after_step(made(9))  # type: ignore[arg-type]
    assert saver.names() == (["finish"] if due else [])
    assert live.calls[0] == ("due", 10, 20)
    assert [call[:2] for call in live.calls[1:]] == ([("run", 10)] if due else [])
    for call in saver.calls + live.calls[1:]:
        call[-1]()
    assert signs == (["writing a checkpoint", "evaluating"] if due else [])
    assert reporter.calls == ([("evaluated", 10, {"eval/20-NN": 40.0})] if due else [])
    assert marks == (["eval"] if due else [])


def test_a_run_without_evaluation_makes_none() -> None:
    reporter = Recorder()
    Evaluations(make_run(live=None), reporter, Recorder(), print).after_step(made(9))  # type: ignore[arg-type]
    assert reporter.calls == []


@pytest.mark.parametrize(
    ("due", "last", "asked", "saved", "waited"),
    [
        (False, False, 0, False, False),
        (True, False, 0, True, False),
        (False, True, 0, True, True),
        (False, False, signal.SIGUSR1, True, True),
    ],
)
def test_a_checkpoint_is_saved_when_due_at_the_end_and_after_a_signal(
    due: bool, last: bool, asked: int, saved: bool, waited: bool
) -> None:
    saver, reporter, bad = (
        Recorder(due=due, finish=True),
        Recorder(before_checkpoint=[1.5, 3.0]),
        Recorder(rows=[("a.jpg", "cut", 3)]),
    )
    run = make_run(bad=bad, rank=0, watch=SimpleNamespace(alive=print))
    member = Checkpoints(run, reporter, saver, print)  # type: ignore[arg-type]
    member.after_step(made(3, last=last, asked=asked))
    starts = [call for call in saver.calls if call[0] == "start"]
    facts = {"images": 24, "samples_seen": 32, "loss_window": [6.0, 12.0]}
    expected = [("start", 4, facts, [("a.jpg", "cut", 3)])] if saved else []
    assert [call[:-1] for call in starts] == expected
    assert ("finish" in saver.names()) == waited
    assert reporter.names() == (["before_checkpoint"] if saved else [])
    assert bad.names() == (["rows"] if saved else [])  # what ranks found goes into the manifest


@pytest.mark.parametrize(("fault", "error"), [(False, CheckpointError), (True, StorageError)])
def test_a_last_state_that_cannot_be_saved_is_an_error(fault: bool, error: type[Exception]) -> None:
    saver = Recorder(due=False, finish=False)
    saver.fault = fault
    member = Checkpoints(
        make_run(bad=Recorder(rows=[]), rank=0, watch=SimpleNamespace(alive=print)),
        Recorder(before_checkpoint=[0.0, 0.0]),  # type: ignore[arg-type]
        saver,  # type: ignore[arg-type]
        lambda part: None,
    )
    with pytest.raises(error, match="could not be saved"):
        member.after_step(made(3, last=True))


def test_a_signal_ends_the_run_after_the_step() -> None:
    Stops().after_step(made(3))
    Stops().after_step(made(3, last=True, asked=signal.SIGTERM))  # complete: nothing is left to stop
    with pytest.raises(Stopped, match="stopped by SIGTERM after step 4"):
        Stops().after_step(made(3, asked=signal.SIGTERM))
    with pytest.raises(Stopped, match="SIGHUP .its launcher or terminal is gone. after step 4"):
        Stops().after_step(made(3, asked=signal.SIGHUP))
