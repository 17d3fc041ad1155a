"""A terminal that is closed, by hand or by a broken connection, while `deepspeed` runs in it."""

import subprocess
import sys
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from tests.dist.launched import TINY, environment
from tests.dist.pool import free_port
from tests.processes import kill_all_of, processes_of
from tests.terminals import run_in, seen
from tests.waiting import limit, wait_until

pytestmark = pytest.mark.dist

CLOSING = """
import fcntl, os, pty, re, struct, sys, termios
pid, terminal = pty.fork()  # the child leads a session whose controlling terminal is ours to close
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))  # room for a progress bar
seen = b""
while not re.search(rb"[^0-9][1-9]\\d*/5,000", seen[-8192:]):  # the progress bar: it has taken a step
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


LABELS = ["images", "steps", "run directory", "curves"]


@pytest.mark.parametrize("columns", [0, 40])
def test_a_run_in_a_terminal_without_a_width_and_in_a_narrow_one(columns: int, place: Path) -> None:
    command = [sys.executable, "-m", "ijepa_ds.train", "--config", "run.yaml", "--deepspeed_config", "zero1.json", *TINY]
    code, output = run_in(columns, command, environment() | {"TERM": "xterm"}, place, 300)
    lines = [line for line in seen(output) if line]
    assert code == 0, output
    assert lines[0].startswith("ijepa_ds ") and "1 x cpu" in lines[0], lines
    assert [line[:17].strip() for line in lines[1:5]] == LABELS
    assert any(line.startswith("pretraining: 6/6 steps in ") for line in lines[5:])
    end = next(number for number, line in enumerate(lines) if line.startswith("done: 6 steps, loss "))
    assert "ijepa-ds export --run" in lines[-1] and len(lines) < 16, lines
    assert all(line.startswith("  ") for line in lines[end + 1 :]), lines
    drawn = [part for part in output.replace("\n", "\r").split("\r") if "pretraining" in part and "%" in part]
    assert drawn and all(len(seen(part)[0]) < (columns or 80) for part in drawn), drawn
    log = (place / "out" / "logs" / "rank_00000.log").read_text()
    assert "\r" not in log and "\x1b" not in log and "masters and EMA float32" in log and "masters and EMA" not in output


def test_the_reason_is_the_last_line_of_a_refused_start(place: Path) -> None:
    command = [str(Path(sys.executable).parent / "deepspeed"), "--log_level", "critical", "--num_gpus", "2"]
    command += ["--master_port", str(free_port()), "--module", "ijepa_ds.train", "--config", "run.yaml"]
    others = [item for item in TINY if not item.startswith("optimization.batch_size=")]
    command += ["--deepspeed_config", "zero1.json", *others, "optimization.batch_size=7"]
    code, output = run_in(120, command, environment() | {"TERM": "xterm"}, place, 300)
    lines = [line for line in seen(output) if line]
    assert code == 2 and len(lines) == 2, output
    assert lines[0].startswith("ijepa_ds cannot run this (") and lines[0].endswith("exit code 2):")
    assert "7 images cannot be shared equally by 2 devices" in lines[1]
