"""Messages and errors, and where they go."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from ijepa_ds.shown import print_any_name

if TYPE_CHECKING:
    from ijepa_ds.terminal.drawn import Bars

_COLOURS = {"warning": "yellow", "error": "bold red"}


class Screen:
    """Where this process writes for people; `route` changes it."""

    def __init__(self) -> None:
        self.routed = False
        self.streams: tuple[TextIO | None, TextIO | None] = (None, None)  # where `routed`: None is silence
        self.copy: Callable[[str], object] = lambda text: None
        self.bars: Bars | None = None

    def stream(self, err: bool) -> TextIO | None:
        """Standard output or standard error as people see it."""
        return self.streams[err] if self.routed else (sys.stdout, sys.stderr)[err]


screen = Screen()


def begin() -> None:
    """Set up the output of a program: names of any bytes can be printed, and log messages go through `line`."""
    print_any_name()
    handler = _Lines()
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    logging.getLogger("ijepa_ds").setLevel(logging.DEBUG)  # details, for a log file only


def route(out: TextIO | None, err: TextIO | None, copy: Callable[[str], object]) -> None:
    """From now on write to `out` and `err` (None: nowhere) instead of the standard streams, and give `copy` each text too.

    It waits for nothing: the thread that draws may hang on a terminal.
    """
    screen.bars = None
    screen.routed, screen.streams, screen.copy = True, (out, err), copy


def line(text: str, kind: str = "", err: bool = False) -> None:
    """Print a message, above the bars if there are any.

    Args:
        text: one or more lines.
        kind: "warning" or "error": in its colour.
        err: on standard error.
    """
    screen.copy(f"{text}\n")
    stream = screen.stream(err)
    if stream is None:
        return
    with suppress(OSError):  # a closed terminal or a full disk must not end the work
        if not is_terminal(stream):
            stream.write(f"{text}\n")
            stream.flush()
            return
        from ijepa_ds.terminal import drawn  # late: it imports rich, which pipes do not need

        bars = screen.bars
        drawn.say(bars.console if bars and bars.shown else drawn.console(stream), text, _COLOURS.get(kind, ""))


def error(who: str, text: str) -> None:
    """Print the reason why a program ends, as its last message: `WHO: TEXT` on standard error."""
    stop_bars()
    line(f"{who}: {text}", "error", err=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether bars and colours can be drawn on a stream."""
    return stream.isatty() and not _is_dumb()


def _is_dumb() -> bool:
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def stop_bars() -> bool:
    """Take the bars away, for a message that is written without this module; whether there were any."""
    bars, screen.bars = screen.bars, None
    return bars.stop() if bars else False


def emphasised(text: str, descriptor: int) -> str:
    """The head of an error message, for writing to a descriptor: in colour if that is a terminal."""
    plain = not text or not os.isatty(descriptor) or _is_dumb() or os.environ.get("NO_COLOR")
    return text if plain else f"\x1b[1;31m{text}\x1b[0m"


def has_bars() -> bool:
    """Whether a bar is on the terminal."""
    return screen.bars is not None and bool(screen.bars.shown)


class _Lines(logging.Handler):
    """Log messages as lines of `line`; details (DEBUG), and what other packages say, go to the copy only if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        theirs = screen.routed and record.levelno < logging.ERROR and not record.name.startswith("ijepa_ds")
        if theirs or record.levelno < logging.INFO:
            screen.copy(f"{text}\n")
        elif record.levelno < logging.WARNING:
            line(text)
        else:
            kind = "error" if record.levelno >= logging.ERROR else "warning"
            line(text if text.startswith("ALARM") else f"{kind}: {text}", kind)
