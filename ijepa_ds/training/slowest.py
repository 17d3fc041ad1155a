"""Which rank is the slowest: figures of every rank travel packed in the all-reduce of maxima that every step makes anyway."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

_RANKS = 1 << 20  # a packed number is value * _RANKS + rank


class Worst(NamedTuple):
    """The largest value of all ranks, and a rank that has it."""

    value: float
    rank: int


class Figures(NamedTuple):
    """Maxima over ranks since the last point.

    Attributes:
        waiting: seconds of waiting for images.
        working: seconds between the begin of a step and its update, without the waiting for images.
        memory: peak memory in GiB.
    """

    waiting: Worst
    working: Worst
    memory: Worst


_UNITS = (1e6, 1e6, 2.0**20)  # a value of 1 becomes so many; whole numbers are exchanged


def pack(values: Sequence[float], rank: int) -> list[int]:
    """Values of `Figures` of one rank, as whole numbers whose maximum over ranks keeps the rank."""
    return [int(value * unit) * _RANKS + rank for value, unit in zip(values, _UNITS, strict=True)]


def unpack(numbers: Sequence[int]) -> Figures:
    """The inverse of `pack`, of maxima."""
    return Figures(*(Worst((n // _RANKS) / unit, n % _RANKS) for n, unit in zip(numbers, _UNITS, strict=True)))


class Stopwatch:
    """This rank's own times since the last point, on the host's clock."""

    def __init__(self) -> None:
        self.waiting = self.working = 0.0
        self._mark = time.perf_counter()

    def begin(self) -> None:
        """A step, or the wait for images, begins."""
        self._mark = time.perf_counter()

    def waited(self) -> None:
        """The images are there: the time since `begin` was waiting, and work begins."""
        now = time.perf_counter()
        self.waiting, self._mark = self.waiting + now - self._mark, now

    def worked(self) -> None:
        """The time since the last call was work."""
        now = time.perf_counter()
        self.working, self._mark = self.working + now - self._mark, now

    def reset(self) -> None:
        """A point was logged."""
        self.waiting = self.working = 0.0
