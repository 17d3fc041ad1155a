"""Programs in a pseudo terminal of any width, and what a person would see on it."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.waiting import limit

_PART = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])")


def run_in(
    columns: int, command: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float = 120
) -> tuple[int, str]:
    """(exit code, output) of a program in a terminal of so many columns; 0: it does not know its size."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.alarm(int(limit(seconds)))
        os.chdir(folder)
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("4H", 40 if columns else 0, columns, 0, 0))
        os.execve(command[0], list(command), dict(environment))
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError as error:
            assert error.errno == errno.EIO, error  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), b"".join(parts).decode()


def seen(output: str) -> list[str]:
    """The lines of a very wide terminal after this output; what was erased or overwritten is gone."""
    lines, row, column = [""], 0, 0
    for arguments, command, back, down, letter in _PART.findall(output):
        if back:
            column = 0
        elif down:
            row += 1
        elif command == "A":
            row = max(0, row - int(arguments or 1))
        elif command == "K":
            assert arguments == "2", arguments
            lines[row] = ""
        elif command:
            assert command == "m", f"an unknown escape: {arguments}{command}"
        elif letter:
            text = lines[row].ljust(column)
            lines[row] = text[:column] + letter + text[column + 1 :]
            column += 1
        while row >= len(lines):
            lines.append("")
    return [line.rstrip() for line in lines]
