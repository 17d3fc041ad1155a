"""The ranks of a job as a watch sees them: where each one runs and what it reported last. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ijepa_ds.cluster.processes import Process, place

_RUNS = 16  # of consecutive ranks in a message


class Report(NamedTuple):
    """What a rank's watch publishes once a second.

    Attributes:
        ticks: ticks of the watch so far; they make every report a new one.
        beats: parts that every rank goes through and that this one has completed (`Watch.beat`). They are comparable.
        phase: what the rank does: "after backward", or a long activity (`Watch.alive`) such as "scanning images".
        overdue: whether no sign of life came within `run.hang_timeout`.
        communicates: whether the rank is in a collective; only looked at when it is overdue.
        step: of training, from 1; 0 before the first.
        age: seconds since the last sign of life.
    """

    ticks: int = 0
    beats: int = 0
    phase: str = "start"
    overdue: bool = False
    communicates: bool = False
    step: int = 0
    age: float = 0.0

    def where(self) -> str:
        """Step and phase, for messages."""
        return f"{f'step {self.step}, ' if self.step else ''}{self.phase}"

    def to_text(self) -> str:
        """JSON for the store."""
        return json.dumps(list(self))

    @classmethod
    def from_text(cls, text: str) -> Report:
        """The inverse of `to_text`."""
        return cls(*json.loads(text))


@dataclass
class Peer:
    """One rank, this process's own included.

    Attributes:
        rank: its number.
        host: host name.
        place: host and PID namespace; `process` can be examined only from the same place.
        process: its process there.
        heard: local time at which `report` last changed.
        report: its newest report.
    """

    rank: int
    host: str
    place: str
    process: Process
    heard: float
    report: Report = Report()

    def hear(self, report: Report, now: float) -> None:
        """Take a report from the store; one that is read again does not count."""
        if report != self.report:
            self.report, self.heard = report, now

    def __str__(self) -> str:
        """Rank, host and process, for messages."""
        return f"rank {self.rank} on host {self.host} (process {self.process.pid})"


def this_place() -> str:
    """Boot of the host and PID namespace of this process. Two hosts may have one name, and one host several."""
    return place()


def describe_hosts(peers: Iterable[Peer]) -> str:
    """Which ranks run on which host: "node1: ranks 0-3; node2: ranks 4-7"."""
    hosts: dict[str, list[int]] = {}
    for peer in peers:
        hosts.setdefault(peer.host, []).append(peer.rank)
    return "; ".join(f"{host}: {spell_ranks(ranks)}" for host, ranks in hosts.items())


def spell_ranks(ranks: list[int]) -> str:
    """Ranks in words: "rank 3", "ranks 0-3", "ranks 0, 2, 5-9", "ranks 0, 2, ... and 99 more"; at least one, in order."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    whole = 2 if len(runs) == 1 else 3  # ranks that are worth a dash
    shown = [f"{run[0]}-{run[-1]}" if len(run) >= whole else ", ".join(map(str, run)) for run in runs[:_RUNS]]
    left = sum(map(len, runs[_RUNS:]))
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(shown)}{f' and {left} more' if left else ''}"
