"""Logs of launched ranks, and what stands last on the terminal after a failure."""

import socket
from pathlib import Path

import pytest

from ijepa_ds.exits import LOST
from tests.dist.launched import Run

pytestmark = pytest.mark.dist


def test_the_first_failing_rank_speaks_last_and_all_is_in_the_logs(place: Path) -> None:
    run = Run(place, "optimization.steps=9", faults=[{"rank": 1, "moment": "forward", "at": 4, "action": "raise"}])
    assert run.wait() == [LOST, 1], run.output
    logs = place / "out" / "logs"
    name = f"rank 1 on host {socket.gethostname()}"
    lines = run.output.rpartition("Traceback (most recent call last):")[2].strip("\n").splitlines()
    assert lines[-3:-1] == ["RuntimeError: as a bug would", ""], run.output
    assert lines[-1].startswith(f"ijepa_ds failed: {name}, see above") and "rank_00001.log" in lines[-1]
    assert all(line.startswith("  ") for line in lines[:-3]), run.output  # nothing of another rank in between
    assert run.output.count("Traceback") == 1
    zero, one = ((logs / f"rank_0000{rank}.log").read_text() for rank in (0, 1))
    assert "as a bug would" in one and "pretraining:" not in one
    assert 0 < run.output.count("pretraining:") <= zero.count("pretraining:")
    assert f"{socket.gethostname()}: ranks 0-1" in run.output
