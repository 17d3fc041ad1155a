"""A terminal that is closed, by hand or by a broken connection, while `deepspeed` runs in it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from tests.dist.launched import TINY, environment, prepare
from tests.dist.pool import free_port
from tests.dist.test_faults import processes_of

pytestmark = pytest.mark.dist

CLOSING = """
import os, pty, select, sys, time
pid, terminal = pty.fork()  # the child leads a session whose controlling terminal is ours to close
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
while b"run directory" not in seen:
    seen += os.read(terminal, 4096)
end = time.monotonic() + 5  # some steps
while time.monotonic() < end:
    if select.select([terminal], [], [], 0.1)[0]:
        os.read(terminal, 4096)
os.close(terminal)
print("closed")
"""


def test_a_closed_terminal_saves_and_leaves_nothing(tmp_path: Path) -> None:
    place = prepare(tmp_path)
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command += ["--module", "ijepa_ds.train", "--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY]
    command += ["optimization.steps=5000", "run.checkpoint_every=5000"]
    closing = [sys.executable, "-c", CLOSING, *command]
    try:
        done = subprocess.run(closing, cwd=place, env=environment(), capture_output=True, text=True, timeout=120)
        assert done.stdout == "closed\n", done.stdout + done.stderr
        end = time.monotonic() + 60
        while processes_of(place):
            assert time.monotonic() < end, processes_of(place)
            time.sleep(0.1)
    finally:
        for process in processes_of(place):
            os.kill(process, 9)
    said = (place / "out" / "logs" / "rank_00000.log").read_text()
    assert "stopped by SIGHUP (its launcher or terminal is gone)" in said and "Exit code 75" in said, said
    assert len(list_steps(place / "out")) == 1
