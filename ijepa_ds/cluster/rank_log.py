"""One log file a rank, and who may speak on the terminal.

Rank 0 writes to both. The others write to `RUN/logs/rank_NNNNN.log` alone, down to what C libraries print; what a user must
see, whichever rank has to say it, goes through `say` or `show`.
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

_terminal = -1  # the stderr that this process was started with
_log = -1  # this rank's file
_path: Path | None = None
_muted = False


def terminal() -> int:
    """The descriptor of the stderr this process was started with; kept from the first call on."""
    global _terminal
    if _terminal < 0:
        _terminal = os.dup(2)
    return _terminal


def path_of(run_dir: Path, rank: int) -> Path:
    """Where a rank's log is."""
    return run_dir / "logs" / f"rank_{rank:05d}.log"


def open_log(run_dir: Path, rank: int, world_size: int) -> None:
    """From now on all that this process prints goes to its file, after what earlier starts left there.

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
        raise ValueError(f"run.dir: {path} cannot be written ({error.strerror}): choose another, or mend it") from error
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
    """Let what is written to a stream go to the file, and with `keep` where it went before.

    The stream itself is changed, not replaced: loggers of other packages hold on to it since they were imported.
    """
    before = stream.write

    def write(text: str) -> int:
        note(text)
        return before(text) if keep and not _muted else len(text)

    stream.write = write  # type: ignore[method-assign]


def mute() -> None:
    """Keep rank 0's further output off the terminal: another rank's last word stands there. `say` and `show` still work."""
    global _muted
    _muted = True


def note(text: str) -> None:
    """To this rank's file only; a full disk loses it, and nothing else."""
    if _log >= 0:
        with contextlib.suppress(OSError):
            os.write(_log, text.encode(errors="replace"))


def show(text: str) -> None:
    """To the terminal only."""
    if threading.current_thread() is threading.main_thread():  # another must not wait for the lock of a stream that hangs
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    with contextlib.suppress(OSError):  # it may be gone
        os.write(terminal(), text.encode(errors="replace"))


def say(text: str) -> None:
    """What the user must see: to the terminal and to this rank's file."""
    note(text)
    show(text)


def pointer() -> str:
    """Where there is more: " (log: PATH)", or nothing before a log is open."""
    return f" (log: {_path})" if _path else ""


def last_words(rank: int, lines: int = 15) -> str:
    """The end of another rank's log, as far as it is on a disk that this host sees; empty when there is nothing."""
    if not _path:
        return ""
    path = _path.with_name(path_of(Path(), rank).name)
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    text = text.rpartition("\n== ")[2]  # of this start
    return "\n".join(text.splitlines()[1:][-lines:])
