"""Logs of launched ranks, and what stands last on the terminal after a failure."""

import socket
from pathlib import Path

import pytest

from ijepa_ds.watch import LOST
from tests.dist.launched import Run, prepare

pytestmark = pytest.mark.dist


def test_the_first_failing_rank_speaks_last_and_all_is_in_the_logs(tmp_path: Path) -> None:
    place = prepare(tmp_path)
    run = Run(place, "optimization.steps=9", faults=[{"rank": 1, "moment": "forward", "at": 4, "action": "raise"}])
    assert run.wait() == [LOST, 1], run.output
    logs = place / "out" / "logs"
    name = f"rank 1 on host {socket.gethostname()}"
    *_, traceback, end = run.output.rstrip().split("\n\n")
    assert traceback.startswith("Traceback") and traceback.endswith("RuntimeError: as a bug would"), run.output
    assert end.startswith(f"ijepa_ds failed: {name}, see above") and "rank_00001.log" in end
    assert run.output.count("Traceback") == 1
    zero, one = ((logs / f"rank_0000{rank}.log").read_text() for rank in (0, 1))
    assert "as a bug would" in one and "step/s, loss" in zero and "step/s, loss" not in one
    assert run.output.count("step/s, loss") == zero.count("step/s, loss") > 0  # rank 1 said nothing on the terminal
    assert f"{socket.gethostname()}: ranks 0-1" in run.output
