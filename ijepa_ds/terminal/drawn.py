"""Bars and coloured messages on a terminal, by rich."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Protocol, TextIO

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text


class Step(Protocol):
    """What is drawn of a `Bar`."""

    what: str

    def facts(self) -> tuple[str, str, str]:
        """Rate, remaining time, and a note; each may be empty."""

    def counted(self) -> str:
        """How many parts are done, of how many."""

    def part(self) -> float:
        """The share that is done, 0 to 1."""

    def is_measured(self) -> bool:
        """Whether `part` is known."""


class _Console(Console):
    """A console that never hides the cursor: a process that is killed could not show it again."""

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor as it is."""
        return False


def console(stream: TextIO) -> Console:
    """Draws on a terminal, in its width."""
    return _Console(file=stream, force_terminal=True, highlight=False, markup=False, emoji=False, width=width_of(stream))


def say(console: Console, text: str, style: str) -> None:
    """Print a message; the terminal wraps long lines, so that a copy of one has no line breaks."""
    console.print(Text(text, style), soft_wrap=True)


def width_of(stream: TextIO) -> int:
    """Columns of a terminal; terminals that do not know theirs say 0."""
    columns = os.environ.get("COLUMNS", "")
    number = int(columns) if columns.isdecimal() else 0
    with suppress(OSError):
        number = number or os.get_terminal_size(stream.fileno()).columns
    return max(20, number or 80)


def row(bar: Step, width: int) -> tuple[str, int, str]:
    """Text, columns of the bar itself, and text of a bar in `width` columns; what does not fit is left out, last first."""
    rate, left, note = bar.facts()
    percent = f"{bar.part():4.0%}" if bar.is_measured() else ""
    room = width - min(cell_len(bar.what), width // 2) - (11 if width >= 60 else 2)  # beside the name and a short bar
    after = percent
    for part in (left, bar.counted(), rate, note):  # the most useful first
        longer = f"{after}  {part}" if after else part
        if part and cell_len(longer) <= room:
            after = longer
    what = bar.what
    if cell_len(what) > (room := max(1, width - cell_len(after) - 1)):
        what = set_cell_size(what, room - 1) + "…"
    columns = width - cell_len(what) - cell_len(after) - 2
    return what, min(columns, 40) if columns >= 5 and percent else 0, after


class Bars:
    """The bars of this process, below everything else on the terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.console, self._stream = console(stream), stream
        self.shown: list[Step] = []
        self._live = Live(
            get_renderable=self._rows,
            console=self.console,
            auto_refresh=False,  # no thread: verbs fork, and a terminal may block
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def _rows(self) -> Group:
        lines = []
        for bar in self.shown:
            what, columns, after = row(bar, self.console.width - 1)
            filled = round(columns * bar.part())
            whole, rest = ("━", "─") if self.console.encoding.startswith("utf") else ("#", "-")
            text = Text(f"{what} ", no_wrap=True, overflow="crop")
            text.append(whole * filled, "cyan").append(rest * (columns - filled), "dim")
            lines.append(text.append(f"{' ' if columns else ''}{after}"))
        return Group(*lines)

    def draw(self) -> None:
        """Draw all of them again."""
        self.console.width = width_of(self._stream)
        if self.shown and not self._live.is_started:
            self._live.start()
        self._live.refresh()

    def stop(self) -> bool:
        """Take them away; whether there were any."""
        if not self._live.is_started:
            return False
        with suppress(OSError):
            self._live.stop()
        return True
