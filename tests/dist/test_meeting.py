"""Ranks that never come, die on the way, or stop before the first step: the others end in time and say who is missing."""

import signal
import socket
from pathlib import Path

import pytest

from ijepa_ds.exits import LOST, STOPPED, USER_ERROR
from tests.dist.launched import Run
from tests.waiting import limit

pytestmark = pytest.mark.dist
HOST = socket.gethostname()
SOON = f"run.start_timeout={limit(15):g}"  # forked ranks come within seconds of each other, on a busy machine, too


@pytest.mark.parametrize("missing", [0, 1])
def test_a_rank_that_never_comes_is_named(missing: int, place: Path) -> None:
    run = Run(place, SOON, "optimization.steps=2", ranks=4, absent=[missing])
    codes = run.wait(120)
    assert [code for rank, code in enumerate(codes) if rank != missing] == [STOPPED] * 3, run.output
    assert not (place / "out").exists()
    if missing:
        assert "rank 1 of 4 has not come within" in run.output and f"here are {HOST}: ranks 0, 2, 3" in run.output
    else:
        assert "rank 0 has not come within" in run.output and "nobody answers at 127.0.0.1:" in run.output
    assert "the same command continues; exit code 75" in run.output


@pytest.mark.parametrize(
    ("victim", "moment"), [(0, "join"), (1, "join"), (1, "met"), (0, "images"), (1, "built"), (0, "forward")]
)
def test_a_rank_that_dies_between_the_meeting_and_the_first_step_is_named(victim: int, moment: str, place: Path) -> None:
    """`join`: before the process group; `met`: behind it, before the others have left it; `forward`: in the first step."""
    fault = {"rank": victim, "moment": moment, "at": 1, "action": "kill"}
    run = Run(place, "optimization.steps=2", faults=[fault])
    codes = run.wait(120)
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == LOST, run.output
    assert f"rank {victim} on host {HOST} (process {run.ranks[victim].pid}) has died" in run.output


@pytest.mark.parametrize("moment", ["meet", "join"])
def test_a_rank_that_stops_before_the_first_step_is_named(moment: str, place: Path) -> None:
    fault = {"rank": 1, "moment": moment, "at": 1, "action": "freeze"}
    run = Run(place, SOON, "optimization.steps=2", faults=[fault])
    run.ranks[0].join(limit(120))
    run.signal(1, signal.SIGKILL)
    assert run.wait(60)[0] == STOPPED, run.output
    assert (
        "run.start_timeout" in run.output
        and ("rank 1 of 2 has not come" if moment == "meet" else "stopped (SIGSTOP)") in run.output
    )


def test_a_refused_start_leaves_nothing(place: Path) -> None:
    """Refused late, by what the images show: run directory, log and index are there by then."""
    before = sorted(place.rglob("*"))
    run = Run(place, "run.dir=new/folder", "optimization.steps=2", "optimization.batch_size=64")
    assert run.wait(120) == [USER_ERROR, USER_ERROR] and "fewer than one global batch" in run.output
    assert [path for path in sorted(place.rglob("*")) if path not in before and not path.name.startswith("output-")] == []
    kept = place / "mine"
    kept.mkdir()
    (kept / "notes.txt").touch()
    assert Run(place, "run.dir=mine", "optimization.steps=2", "optimization.batch_size=64").wait(120) == [USER_ERROR] * 2
    assert [path.name for path in kept.iterdir()] == ["notes.txt"]
