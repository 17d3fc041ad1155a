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
    reason = f"ijepa_ds failed: {name}; its traceback is in {logs}/rank_00001.log; exit code 1:"
    assert run.output.splitlines()[-2:] == [reason, "RuntimeError: as a bug would"], run.output
    assert "Traceback" not in run.output and run.output.count("as a bug would") == 1
    zero, one = ((logs / f"rank_0000{rank}.log").read_text() for rank in (0, 1))
    assert one.count("Traceback (most recent call last)") == 1 and "as a bug would" in one and "pretraining:" not in one
    assert 0 < run.output.count("pretraining:") <= zero.count("pretraining:")
    assert f"{socket.gethostname()}: ranks 0-1" in zero and "\r" not in zero + one and "\x1b" not in zero + one
    banner = run.output.splitlines()[:5]
    assert banner[0].startswith("ijepa_ds ") and "2 x cpu" in banner[0] and "a fresh start" in banner[0], run.output
    assert [line[:17].strip() for line in banner[1:]] == ["images", "steps", "run directory", "curves"], run.output
