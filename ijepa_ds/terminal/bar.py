"""Progress of long steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ijepa_ds.shown import shown
from ijepa_ds.terminal.screen import is_terminal, line, screen, stop_bars

T = TypeVar("T")
_EVERY = 15.0  # seconds between the plain lines of a step
_REDRAW = 0.2  # seconds between two drawings of a bar
_RECENT = 60.0  # seconds over which the rate is taken
_LONG = 5.0  # seconds: a step that took longer leaves a line


class Bar:
    """Progress of a long step: a bar on a terminal, a line now and then elsewhere; both tell the remaining time."""

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        *,
        show: bool = True,
        done: int = 0,
        share: Callable[[], float] | None = None,
        always: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin.

        Args:
            what: the step.
            total: number of its parts; 0: unknown.
            unit: their name, in the plural.
            show: False: no output at all.
            done: parts that an earlier process has done.
            share: which share of the step is done, 0 to 1, where `total` is unknown.
            always: leave a line even if the step was short.
            clock: seconds.
        """
        self.what, self.total, self.unit, self.done, self.note = shown(what), total, unit, done, ""
        self._share, self._always, self._clock, self._first = share, always, clock, done
        self._began = self._said = clock()
        self._drawn = 0.0
        self._spoke, self._closed = False, not show
        self._past: deque[tuple[float, int]] = deque([(self._began, done)])
        if show:
            _add(self)

    def update(self, count: int = 1) -> None:
        """Note that `count` more parts are done."""
        self.done += count
        if self._closed:
            return
        now = self._clock()
        if now - self._past[-1][0] >= 1:
            self._past.append((now, self.done))
            while len(self._past) > 2 and now - self._past[0][0] > _RECENT:
                self._past.popleft()
        if now - self._drawn >= _REDRAW:
            self._drawn = now
            _redraw()
        if now - self._said >= _EVERY or (self._always and not self._spoke):
            self._said, self._spoke = now, True
            self._say(self.text())

    def text(self) -> str:
        """The state in one line: `index data: 1,234/10,000 images, 345/s, 2 min left`."""
        return ", ".join(part for part in (f"{self.what}: {self.counted()}", *self.facts()) if part)

    def counted(self) -> str:
        """`1,234/10,000 images`."""
        return f"{self.done:,}{f'/{self.total:,}' if self.total else ''} {self.unit}"

    def facts(self) -> tuple[str, str, str]:
        """Rate, remaining time, and `note`; each may be empty."""
        (then, before), now = self._past[0], self._clock()
        rate = (self.done - before) / (now - then) if now - then >= 1 else 0.0  # the first second tells little
        part, left = self.part(), ""
        if self._share and 0 < part < 1 and rate:
            left = f"{duration((now - self._began) * (1 - part) / part)} left"
        elif self.total > self.done and rate:
            left = f"{duration((self.total - self.done) / rate)} left"
        return _rate(rate), left, self.note

    def part(self) -> float:
        """The share that is done, 0 to 1."""
        if self._share:
            return min(0.99, self._share())  # what is begun may not be done
        return min(1.0, self.done / self.total) if self.total else 0.0

    def is_measured(self) -> bool:
        """Whether `part` is known."""
        return bool(self.total or self.part())

    def close(self) -> None:
        """Take the bar away; a long step leaves a line."""
        if self._closed:
            return
        self._closed = True
        _remove(self)
        spent = self._clock() - self._began
        if self._always or self._spoke or spent >= _LONG:
            ended = self.total and self.done < self.total
            self._say(f"{self.what}: {'stopped at ' if ended else ''}{self.counted()} in {duration(spent)}", final=True)

    def _say(self, text: str, final: bool = False) -> None:
        if not final and screen.bars and screen.bars.shown:
            screen.copy(f"{text}\n")  # the terminal has the bar
        else:
            line(text, err=True)

    def __enter__(self) -> Bar:
        """Begin a block that closes the bar."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar."""
        self.close()


def track(items: Iterable[T], what: str | None, unit: str, *, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Yield the items of a long step, and show how many are done.

    Args:
        items: the parts.
        what: the step; None: nothing is shown.
        unit: what the parts are, in the plural.
        total: how many, where `items` has no length.
        show: False: nothing is shown.
    """
    number = len(items) if total is None else total  # type: ignore[arg-type]
    with Bar(what or "", number, unit, show=show and what is not None) as bar:
        for item in items:
            yield item
            bar.update()


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _rate(rate: float) -> str:
    if not rate:
        return ""
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"


def _add(bar: Bar) -> None:
    stream = screen.stream(err=True)
    if stream is None or not is_terminal(stream):
        return
    if screen.bars is None:
        from ijepa_ds.terminal.drawn import Bars  # late: it imports rich, which pipes do not need

        screen.bars = Bars(stream)
    screen.bars.shown.append(bar)
    _redraw()


def _redraw() -> None:
    if screen.bars and screen.bars.shown:
        try:
            screen.bars.draw()
        except OSError:  # the terminal is closed
            screen.bars = None


def _remove(bar: Bar) -> None:
    bars = screen.bars
    if bars and bar in bars.shown:
        bars.shown.remove(bar)
        if bars.shown:
            _redraw()
        else:
            stop_bars()
