"""Processes that tests start: which are alive, which work in a folder, and how none of them outlives its test."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ijepa_ds.cluster.processes import end_with_parent
from tests.waiting import limit


def die_with_parent() -> None:
    """In a process that a test has started: the kernel ends it when its parent ends, even if that was killed."""
    parent = os.getppid()
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_pytest() -> None:
    """In a process of multiprocessing: end it when pytest ends. A fork server, its direct parent, may live longer."""
    pytest = multiprocessing.parent_process()
    assert pytest is not None

    def wait() -> None:
        multiprocessing.connection.wait([pytest.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end with pytest", daemon=True).start()


def take_all_signals() -> None:
    """Under nohup, or in the background of a script, signals are ignored, and so by all that is started."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def processes_of(place: Path) -> list[int]:
    """Living processes that work in `place`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and Path(os.readlink(entry / "cwd")) == place and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def kill_all_of(place: Path) -> None:
    """Kill the processes that work in `place`, and those that they start meanwhile."""
    end = time.monotonic() + limit(60)
    while pids := processes_of(place):
        assert time.monotonic() < end, f"{pids} cannot be killed: they wait in the kernel"
        time.sleep(0.01)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def outputs_of(started: Sequence[subprocess.Popen[str]], place: Path, seconds: float) -> list[str]:
    """What each process prints until its end; if the test fails, no process that works in `place` outlives it."""
    try:
        return [process.communicate(timeout=limit(seconds))[0] for process in started]
    finally:
        kill_all_of(place)
        for process in started:
            process.communicate()


def modules_after(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())
