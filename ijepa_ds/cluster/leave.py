"""How a watch ends its process: messages, stacks, and the exit."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from ijepa_ds.cluster import rank_log
from ijepa_ds.cluster.judge import Role, Verdict, role
from ijepa_ds.cluster.peers import Peer
from ijepa_ds.exits import LOST, note


class Limit(NamedTuple):
    """How long a job may make no progress.

    Attributes:
        seconds: 0: for ever.
        key: of the configuration.
        code: the exit code when they are over.
    """

    seconds: float = 0.0
    key: str = "run.hang_timeout"
    code: int = LOST


_DEADLINE = 10.0  # seconds for last words: a log on a disk that hangs must not keep the process
_NAMED = 8  # ranks in a message
_STACKS = 2  # of ranks of one host


def leave(text: str = "", code: int = LOST) -> NoReturn:
    """End this process now; its main thread may never return from a collective."""
    exit_within(_DEADLINE, code)
    note(code)
    if text:
        rank_log.say(f"\nijepa_ds: {text}. The same command continues from the newest checkpoint\n")
    os._exit(code)


def exit_within(seconds: float, code: int) -> None:
    """End this process after so many seconds, whatever its threads wait for."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(code)

    threading.Thread(target=end, name="deadline", daemon=True).start()


def leave_hang(
    peers: Mapping[int, Peer], rank: int, verdict: Verdict, limit: Limit, *, elsewhere: int | None, period: float
) -> NoReturn:
    """Say which ranks hang and print their stacks, then end this process.

    Rank 0's host prints the verdict, and the hosts of the ranks that hang their stacks: one rank a host speaks.

    Args:
        peers: rank -> peer, at least of this host and rank 0.
        rank: this one.
        verdict: what rank 0 has found.
        limit: what was allowed.
        elsewhere: the lowest rank that is not on rank 0's host, or None.
        period: seconds between two looks of a rank for the verdict: others of this host may learn of it that much later.
    """
    hanging, place = verdict.ranks, peers[rank].place
    mine = role(peers.values(), rank, hanging)
    pause = mine.value + (period - 1.0 if mine is not Role.REPORTER else 0.0)
    exit_within(pause + _STACKS + _DEADLINE, limit.code)
    if mine is Role.REPORTER:
        said = ""
        if place == peers[0].place or (0 in hanging and rank == elsewhere):  # rank 0's whole host may be silent
            said = "".join(f"\nijepa_ds: {line}\n" for line in verdict.words)
            rank_log.show(said)
        known = [peers[other] for other in hanging or [0] if other in peers]
        here = [peer for peer in known if peer.place == place] if place in verdict.places else []
        for peer in here[:_STACKS]:
            said += _show_stack(peer, own=peer.rank == rank)
        rank_log.note(said)  # last: its disk may hang
    elif mine is Role.SUSPECT:
        faulthandler.dump_traceback(all_threads=True)  # into its own log
    time.sleep(pause)
    leave("the job cannot go on: ending it" if rank == 0 else "", limit.code)


def _show_stack(peer: Peer, own: bool) -> str:
    """Print the stack of a rank; the line above it."""
    if peer.process.state() == "T":  # it cannot answer now; a signal that waits for SIGCONT would come while its threads run
        rank_log.show(line := f"\nijepa_ds: {peer} is stopped (SIGSTOP)\n")
        return line
    rank_log.show(line := f"\nijepa_ds: {peer}. Its stack:\n")
    if own:
        faulthandler.dump_traceback(file=rank_log.terminal(), all_threads=True)
    else:
        with suppress(ProcessLookupError):
            os.kill(peer.process.pid, signal.SIGUSR2)
    time.sleep(1.0)
    return line


def report_dead(dead: Sequence[Peer]) -> NoReturn:
    """Name ranks that have died, with the last lines of their logs, then end this process."""
    exit_within(_DEADLINE, LOST)
    names = "; ".join(f"{peer} has died" for peer in dead[:_NAMED])
    more = f"; and {len(dead) - _NAMED} more" if len(dead) > _NAMED else ""
    rank_log.say(f"\nijepa_ds: {names}{more} (killed, out of memory, or by an error that it printed)\n")
    for peer in dead[:_STACKS]:  # after the names: the disk of the logs may hang
        words = rank_log.last_words(peer.rank)
        if words:
            rank_log.say(f"\nijepa_ds: the last lines of {peer}:\n{words}\n")
    leave("the job ends")


def is_communicating(thread: int | None) -> bool:
    """Whether a thread of this process is in a collective."""
    frame = sys._current_frames().get(thread or 0)
    if frame and "/ijepa_ds/distributed/" in frame.f_code.co_filename:
        return True  # innermost, so that it waits; further out it may have called a function that hangs
    while frame:
        if any(part in frame.f_code.co_filename for part in ("/torch/distributed/", "/deepspeed/comm/")):
            return True
        frame = frame.f_back
    return False
