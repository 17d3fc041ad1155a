"""A terminal that is closed, by hand or by a broken connection, while `deepspeed` runs in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from tests.dist.launched import TINY, environment
from tests.dist.pool import free_port
from tests.processes import kill_all_of, processes_of
from tests.waiting import limit, wait_until

pytestmark = pytest.mark.dist

CLOSING = """
import fcntl, os, pty, re, struct, sys, termios
pid, terminal = pty.fork()  # the child leads a session whose controlling terminal is ours to close
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))  # room for a progress bar
seen = b""
while not re.search(rb"[^0-9][1-9]\\d*/5000", seen[-8192:]):  # the progress bar: it has taken a step
    seen += os.read(terminal, 4096)
os.close(terminal)
print("closed")
"""


def test_a_closed_terminal_saves_and_leaves_nothing(place: Path) -> None:
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command += ["--module", "ijepa_ds.train", "--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY]
    command += ["optimization.steps=5000", "run.checkpoint_every=5000"]
    closing = [sys.executable, "-c", CLOSING, *command]
    try:
        done = subprocess.run(closing, cwd=place, env=environment(), capture_output=True, text=True, timeout=limit(600))
        assert done.stdout == "closed\n", done.stdout + done.stderr
        wait_until(lambda: not processes_of(place), 200, "the end of all ranks")
    finally:
        kill_all_of(place)
    said = (place / "out" / "logs" / "rank_00000.log").read_text()
    assert "stopped by SIGHUP (its launcher or terminal is gone)" in said and "Exit code 75" in said, said
    assert len(list_steps(place / "out")) == 1
