"""One log file a rank; the terminal has only what `ijepa_ds.terminal` prints on rank 0.

What libraries, C++ and other programs print goes to `RUN/logs/rank_NNNNN.log`: DeepSpeed and PyTorch print some twenty
lines at a start. Messages that the user must see go to the terminal through `say` or `show`, from any rank.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

from ijepa_ds import terminal as screen
from ijepa_ds.errors import UserError, is_fault

_terminal = -1  # stderr at the start of this process
_streams: list[int] = []  # stdout and stderr at the start, once `hold` has taken them
_log = -1  # this rank's file; before it is open, what is printed is kept in memory
_path: Path | None = None


def terminal() -> int:
    """A descriptor of the stderr that this process had at the first call."""
    global _terminal
    if _terminal < 0:
        _terminal = os.dup(2)
    return _terminal


def path_of(run_dir: Path, rank: int) -> Path:
    """Path of a rank's log."""
    return run_dir / "logs" / f"rank_{rank:05d}.log"


def hold(rank: int) -> None:
    """Keep what this process prints from the terminal until `open_log`, except messages of `ijepa_ds.terminal` of rank 0."""
    global _log
    if _streams:
        return
    terminal()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _streams.extend(os.dup(number) for number in (1, 2))
    _log = os.memfd_create("held")
    _take(_log)
    for stream in (sys.stdout, sys.stderr):  # the objects: loggers of other packages keep a reference to them
        stream.write = _written  # type: ignore[method-assign]
    if rank == 0:
        faulthandler.enable(file=terminal())  # a crash is not only in the log
        out, err = (open(number, "w", buffering=1, errors="backslashreplace", closefd=False) for number in _streams)  # noqa: SIM115
        screen.route(out, err, note)
    else:
        screen.route(None, None, note)


def _written(text: str) -> int:
    """Instead of `write` of both streams: a full disk must not end the run."""
    note(text)
    return len(text)


def _take(descriptor: int) -> None:
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def release() -> None:
    """Show what was held, for an error before the log is open; afterwards this process prints as at its start."""
    global _log
    if not _streams or _path:
        return
    held, _log = _held(), -1
    for number, stream in enumerate((sys.stdout, sys.stderr)):
        os.dup2(_streams[number], number + 1)
        del stream.write
    with contextlib.suppress(OSError):
        os.write(terminal(), held)


def _held() -> bytes:
    """What was printed before the log is open."""
    with open(os.dup(_log), "rb") as file:
        file.seek(0)
        return file.read()


def open_log(run_dir: Path, rank: int, world_size: int) -> None:
    """From now on append everything that this process prints to its log.

    Raises:
        ValueError: the file cannot be written.
    """
    global _log, _path
    hold(rank)
    path = path_of(run_dir, rank)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if is_fault(error):
            raise
        raise UserError(
            f"run.dir: {path} cannot be written ({error.strerror}): choose another run.dir, or make it writable"
        ) from error
    before, _log, _path = _held(), log, path
    now = time.strftime("%Y-%m-%d %H:%M:%S %z")
    note(f"== {now} rank {rank} of {world_size} on host {socket.gethostname()}, process {os.getpid()}\n")
    note(before.decode(errors="replace"))
    _take(_log)


def mute() -> None:
    """Stop rank 0's output to the terminal, so that another rank's error stays last. `say` and `show` still print."""
    had_bars = screen.has_bars()
    screen.route(None, None, note)
    if had_bars:
        with contextlib.suppress(OSError):
            os.write(terminal(), b"\r\x1b[2K")


def note(text: str) -> None:
    """Write to this rank's log only; errors such as a full disk are ignored."""
    if _log >= 0:
        with contextlib.suppress(OSError):
            os.write(_log, text.encode(errors="replace"))


def show(text: str) -> None:
    """Write to the terminal only."""
    if threading.current_thread() is threading.main_thread():  # other threads must not wait for the lock of a hanging stream
        screen.stop_bars()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
    elif screen.has_bars():
        text = f"\r\x1b[2K{text}"
    with contextlib.suppress(OSError):  # the terminal may be closed
        os.write(terminal(), text.encode(errors="replace"))


def say(text: str, head: str = "") -> None:
    """Write to the terminal, then to this rank's log, whose disk may hang; `head`, before the text, in colour."""
    show(f"{screen.emphasised(head, terminal())}{text}")
    note(f"{head}{text}")


def path() -> Path | None:
    """This rank's log; None before it is open."""
    return _path


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
