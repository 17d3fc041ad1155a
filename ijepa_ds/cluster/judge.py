"""The decisions of a watch as pure functions: they read no clock, no process and no store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from ijepa_ds.cluster.peers import Peer, spell_ranks

SCAN = "scanning images"  # phase of a rank that scans a source; the others wait for it
READ = "reading a checkpoint"  # phase of a rank that checks and loads its share
STORAGE = "waiting for storage"  # phase of a rank whose reads are repeated (data.storage_timeout)
WRITE = "writing a checkpoint"  # phase of a rank that waits for its own writing thread
EVAL = "evaluating"
_NAMED = 8  # ranks in a verdict, and groups of the others
_HOSTS = 4  # whose ranks' stacks are printed
# a rank that gets on with one of them may keep the others waiting for any time
_AWAITED = frozenset({READ, SCAN, STORAGE, WRITE, EVAL})
SILENCE = 30.0  # seconds without a new report after which a rank counts as silent


class State(Enum):
    """Whether a rank has failed by itself (an exception, not a fault that a watch found)."""

    WATCHING = auto()  # none has
    OWN_FAILURE = auto()  # this one, first: its main thread prints the reason and exits
    PEER_FAILURE = auto()  # another one, first: this process exits after it


@dataclass(frozen=True)
class Lost:
    """Ranks on other hosts that are silent: the job ends."""

    ranks: list[int]


@dataclass(frozen=True)
class Hang:
    """The job makes no progress; `ranks` keep the others waiting. None of them: nothing tells the ranks apart."""

    ranks: list[int]


class Verdict(NamedTuple):
    """Rank 0's verdict on a hang.

    Attributes:
        ranks: the ranks that hang; none if nothing tells the ranks apart.
        words: lines for the terminal.
        places: of the ranks that hang, the first few; their hosts print stacks.
    """

    ranks: list[int]
    words: list[str]
    places: list[str]


def is_overdue(now: float, progress: float, timeout: float) -> bool:
    """Whether a rank whose last beat came at `progress` exceeds `timeout` (seconds; 0: never)."""
    return 0 < timeout < now - progress


def judge(
    peers: Sequence[Peer], *, place: str, stopped: Collection[int], now: float, progress: float, timeout: float
) -> Lost | Hang | None:
    """Rank 0's verdict on the job; None: it may go on.

    Args:
        peers: all ranks in order, with their newest reports.
        place: rank 0's.
        stopped: ranks at that place that are stopped by a signal (SIGSTOP).
        now: seconds, on the clock of `progress` and `Peer.heard`.
        progress: when rank 0 made its last beat.
        timeout: seconds without a beat that are allowed; 0: any number.
    """
    silent = [peer for peer in peers if now - peer.heard > SILENCE]
    remote = [peer.rank for peer in silent if peer.place != place]
    if remote:
        return Lost(remote)
    awaited = any(peer.report.phase in _AWAITED and not peer.report.overdue for peer in peers if peer not in silent)
    if is_overdue(now, progress, timeout) and not awaited:
        return Hang(_suspects(peers, {*stopped, *(peer.rank for peer in silent)}))
    return None


def _suspects(peers: Sequence[Peer], inactive: Collection[int]) -> list[int]:
    """Who keeps the others waiting: inactive ranks; else, of those with the fewest beats, the ones outside a collective."""
    if inactive:
        return sorted(inactive)
    fewest = min(peer.report.beats for peer in peers)
    behind = [peer for peer in peers if peer.report.beats == fewest]
    outside = [peer.rank for peer in behind if not peer.report.communicates]
    return outside or ([peer.rank for peer in behind] if len(behind) < len(peers) else [])


def words(peers: Sequence[Peer], hanging: Collection[int], limit: str) -> list[str]:
    """The verdict for the terminal, a line each: who hangs in which phase since when, and where the others are.

    Args:
        peers: all ranks in order, with their newest reports.
        hanging: from `Hang`.
        limit: what was allowed, such as "run.hang_timeout: 900 s".
    """
    lines = []
    for peer in [peers[rank] for rank in sorted(hanging)][:_NAMED]:
        report = peer.report
        lines.append(f"{peer} hangs: no progress for {report.age:.0f} s ({limit}) at {report.where()}")
    if len(hanging) > _NAMED:
        lines.append(f"{len(hanging) - _NAMED} more ranks hang")
    if not hanging:
        lines.append(
            f"the job hangs ({limit}): every rank waits for the others, and none is behind. A link, a switch or a GPU has "
            "failed, or ranks called collectives in different orders. NCCL_DEBUG=INFO shows more"
        )
    groups: dict[str, list[int]] = {}
    for peer in peers:
        if peer.rank not in hanging:
            waits = ", in a collective" if peer.report.communicates else ""
            groups.setdefault(f"at {peer.report.where()}{waits}", []).append(peer.rank)
    shown = [f"{spell_ranks(ranks)} {where}" for where, ranks in list(groups.items())[:_NAMED]]
    more = [f"{len(groups) - _NAMED} more groups"] if len(groups) > _NAMED else []
    return lines + ([("the others: " if hanging else "") + "; ".join(shown + more)] if shown else [])


class Role(Enum):
    """What a rank does when a hang ends the job; the value is how many seconds it then waits before it exits."""

    REPORTER = 0.0  # prints the suspects of its host, with one second for the stack of each
    SUSPECT = 4.0  # waits until its reporter has asked for its stack
    BYSTANDER = 2.0  # waits until the reporter has printed


def places_of(peers: Mapping[int, Peer], hanging: Collection[int]) -> list[str]:
    """`Verdict.places`; rank 0's if nothing tells the ranks apart."""
    return list(dict.fromkeys(peers[rank].place for rank in hanging or [0]))[:_HOSTS]


def role(peers: Collection[Peer], rank: int, suspects: Collection[int]) -> Role:
    """The role of `rank`: on each host one rank speaks, the lowest that is no suspect, or the lowest of all suspects.

    `peers` are at least those of its host.
    """
    place = next(peer.place for peer in peers if peer.rank == rank)
    here = [peer.rank for peer in peers if peer.place == place]
    if rank == min([other for other in here if other not in suspects] or here):
        return Role.REPORTER
    return Role.SUSPECT if rank in suspects else Role.BYSTANDER
