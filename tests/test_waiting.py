"""What tests wait with, and that nothing they start outlives them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import waiting
from tests.processes import is_alive, kill_all_of, processes_of
from tests.waiting import limit, wait_until

PARENT = """
import subprocess, sys
from tests.processes import die_with_parent
child = subprocess.Popen(["sleep", "600"], preexec_fn=die_with_parent)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_process_has_started_ends(number: int, repository: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    try:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        parent.send_signal(number)
    finally:
        parent.send_signal(signal.SIGKILL) if number == signal.SIGKILL else parent.terminate()
        parent.communicate()
    wait_until(lambda: not is_alive(child), 60, "the end of the child")


def test_processes_of_a_folder_are_found_and_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(["sleep", "600"], cwd=tmp_path)
    wait_until(lambda: processes_of(tmp_path) == [process.pid], 60, "the process")
    kill_all_of(tmp_path)
    assert process.wait(limit(60)) == -signal.SIGKILL and processes_of(tmp_path) == []


def test_limits_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_SCALE", 0.5)
    assert limit(10) == 5.0
    with pytest.raises(AssertionError, match="waited 0 s for: nothing"):
        wait_until(lambda: False, 0.1, "nothing")
