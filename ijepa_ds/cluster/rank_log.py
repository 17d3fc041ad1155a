"""One log file a rank; only rank 0 also prints to the terminal.

The other ranks write to `RUN/logs/rank_NNNNN.log` only, output of C libraries included. Messages that the user must see go to
the terminal through `say` or `show`, from any rank.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

from ijepa_ds.errors import UserError, is_fault

_terminal = -1  # stderr at the start of this process
_log = -1  # this rank's file
_path: Path | None = None
_muted = False


def terminal() -> int:
    """A descriptor of the stderr that this process had at the first call."""
    global _terminal
    if _terminal < 0:
        _terminal = os.dup(2)
    return _terminal


def path_of(run_dir: Path, rank: int) -> Path:
    """Path of a rank's log."""
    return run_dir / "logs" / f"rank_{rank:05d}.log"


def open_log(run_dir: Path, rank: int, world_size: int) -> None:
    """From now on append everything that this process prints to its log.

    Raises:
        ValueError: the file cannot be written.
    """
    global _log, _path
    terminal()
    path = path_of(run_dir, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if is_fault(error):
            raise
        raise UserError(
            f"run.dir: {path} cannot be written ({error.strerror}): choose another run.dir, or make it writable"
        ) from error
    _path = path
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    note(f"== {now} rank {rank} of {world_size} on host {socket.gethostname()}, process {os.getpid()}\n")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        _route(stream, keep=rank == 0)
    if rank:
        os.dup2(_log, 1)
        os.dup2(_log, 2)


def _route(stream: TextIO, keep: bool) -> None:
    """Copy what is written to a stream to the log, or, without `keep`, redirect it there.

    The stream object is changed, not replaced, because loggers of other packages keep a reference to it.
    """
    before = stream.write

    def write(text: str) -> int:
        if not text.startswith("\r"):  # a progress bar of a terminal
            note(text)
        return before(text) if keep and not _muted else len(text)

    stream.write = write  # type: ignore[method-assign]


def mute() -> None:
    """Stop rank 0's output to the terminal, so that another rank's error stays last. `say` and `show` still print."""
    global _muted
    _muted = True


def note(text: str) -> None:
    """Write to this rank's log only; errors such as a full disk are ignored."""
    if _log >= 0:
        with contextlib.suppress(OSError):
            os.write(_log, text.encode(errors="replace"))


def show(text: str) -> None:
    """Write to the terminal only."""
    if threading.current_thread() is threading.main_thread():  # other threads must not wait for the lock of a hanging stream
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(terminal(), text.encode(errors="replace"))


def say(text: str) -> None:
    """Write to the terminal, then to this rank's log, whose disk may hang."""
    show(text)
    note(text)


def pointer() -> str:
    """A note for messages, " (log: PATH)"; empty before a log is open."""
    return f" (log: {_path})" if _path else ""


def last_words(rank: int, lines: int = 15) -> str:
    """The last lines of another rank's log, of its newest start; empty if this host cannot read it."""
    if not _path:
        return ""
    path = _path.with_name(path_of(Path(), rank).name)
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    text = text.rpartition("\n== ")[2]  # of the newest start
    return "\n".join(text.splitlines()[1:][-lines:])
