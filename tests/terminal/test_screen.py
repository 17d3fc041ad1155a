"""Bars and messages in real terminals: of no width, narrow, wide, without colours, dumb; and in a pipe."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminals import run_in, seen

SPEAK = """
import logging, time
from ijepa_ds import terminal
terminal.begin()
log = logging.getLogger("ijepa_ds.x")
print("printed before")
with terminal.Bar("pretraining", 60, "steps", always=True) as bar:
    for number in range(60):
        time.sleep(0.02)
        bar.note = "loss 0.5"
        if number in (20, 21):
            log.info("a message in the middle, with number %d and a text that is longer than forty columns", number)
        if number == 30:
            log.warning("look out")
            assert list(terminal.track([1, 2, 3], "inside", "parts")) == [1, 2, 3]
        bar.update()
terminal.line("[bold]no markup[/bold] :smile: 123")
terminal.error("ijepa-ds x", "the reason")
"""
WANTED = [
    "printed before",
    *(f"a message in the middle, with number {number} and a text that is longer than forty columns" for number in (20, 21)),
    "warning: look out",
    "pretraining: 60/60 steps in",
    "[bold]no markup[/bold] :smile: 123",
    "ijepa-ds x: the reason",
]


def environment(**more: str) -> dict[str, str]:
    gone = ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TERM")
    return {key: value for key, value in os.environ.items() if key not in gone} | {"TERM": "xterm-256color"} | more


def speak(columns: int, folder: Path, **more: str) -> str:
    code, output = run_in(columns, [sys.executable, "-c", SPEAK], environment(**more), folder)
    assert code == 0, output
    return output


def assert_wanted(lines: list[str]) -> None:
    """Each line is alone: nothing is glued to a bar, and no bar is left."""
    lines = [line for line in lines if line]
    assert len(lines) == len(WANTED) and all(map(str.startswith, lines, WANTED)), "\n".join(lines)


@pytest.mark.parametrize(
    ("columns", "more"),
    [(0, {}), (40, {}), (120, {}), (120, {"COLUMNS": "0"}), (120, {"COLUMNS": "40"}), (40, {"LANG": "C", "LC_ALL": "POSIX"})],
)
def test_messages_stand_alone_above_the_bars(columns: int, more: dict[str, str], tmp_path: Path) -> None:
    output = speak(columns, tmp_path, **more)
    assert_wanted(seen(output))
    width = int(more.get("COLUMNS") or 0) or columns or 80
    drawn = [part for part in output.replace("\n", "\r").split("\r") if "pretraining" in part and "%" in part]
    assert len(drawn) >= 4, output  # more than once in a second
    assert all(len(seen(part)[0]) < width and "%" in seen(part)[0] for part in drawn), drawn
    assert "\x1b[33m" in output and "\x1b[1;31m" in output  # the warning and the error
    assert "?25l" not in output  # a process that is killed could not show the cursor again


def test_no_color(tmp_path: Path) -> None:
    output = speak(120, tmp_path, NO_COLOR="1")
    assert_wanted(seen(output))
    assert "pretraining ━" in output.replace("\x1b[2K", "") or "━" in output
    assert not any(f"\x1b[{code}m" in output for code in ("33", "36", "31", "1;31")), output


def test_a_dumb_terminal_and_a_pipe_get_lines(tmp_path: Path) -> None:
    output = speak(120, tmp_path, TERM="dumb")
    done = subprocess.run([sys.executable, "-c", SPEAK], env=environment(), capture_output=True, text=True, check=True)
    for text in (output.replace("\r\n", "\n"), done.stdout, done.stderr):
        assert "\r" not in text and "\x1b" not in text
    lines = output.split("\r\n")
    assert "pretraining: 1/60 steps, loss 0.5" in lines and lines[-2] == WANTED[-1]
    assert done.stderr.splitlines()[-1] == WANTED[-1] and "warning: look out" in done.stdout.splitlines()


def test_a_pipe_needs_no_rich() -> None:
    code = SPEAK + "\nimport sys\nassert 'rich' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)


CLOSED = """
import signal, time
from pathlib import Path
from ijepa_ds import terminal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
terminal.begin()
with terminal.Bar("x", 100, "parts", always=True) as bar:
    for number in range(100):
        time.sleep(0.02)
        bar.update()
        terminal.line("a line")
Path("finished").touch()
"""


def test_a_terminal_that_is_closed_does_not_end_the_work(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-c", CLOSED], environment())
    text = b""
    while b"a line" not in text:
        text += os.read(terminal, 1024)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    # Python itself exits with 120 if the last text is still in its buffer; the trainer closes such streams first.
    assert os.WIFEXITED(status) and os.WEXITSTATUS(status) in (0, 120) and (tmp_path / "finished").exists()
