"""How a watch ends its process: messages, stacks, and the exit."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple, NoReturn

from ijepa_ds.cluster import rank_log
from ijepa_ds.cluster.judge import Role, role
from ijepa_ds.cluster.peers import Peer
from ijepa_ds.exits import LOST


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


def leave(text: str = "", code: int = LOST) -> NoReturn:
    """End this process now; its main thread may never return from a collective."""
    if text:
        rank_log.say(f"\nijepa_ds: {text}. The same command continues from the newest checkpoint\n")
    os._exit(code)


def leave_hang(peers: Sequence[Peer], rank: int, hanging: Sequence[int], limit: Limit) -> NoReturn:
    """Name the ranks that hang and print their stacks, then end this process.

    Args:
        peers: all ranks in order.
        rank: this one.
        hanging: the ranks that keep the others waiting.
        limit: what was allowed.
    """
    mine = role(peers, rank, hanging)
    if mine is Role.REPORTER:
        for peer in (peers[other] for other in hanging):
            if peer.place == peers[rank].place:
                _report(peer, limit, own=peer.rank == rank)
    elif mine is Role.SUSPECT:
        faulthandler.dump_traceback(all_threads=True)  # into its own log
    time.sleep(mine.value)
    leave("the job cannot go on: ending it" if rank == 0 else "", limit.code)


def _report(peer: Peer, limit: Limit, own: bool) -> None:
    text = f"\nijepa_ds: {peer} hangs: no progress for {limit.seconds:.0f} s ({limit.key})."
    if peer.process.state() == "T":  # it cannot answer now; a signal that waits for SIGCONT would come while its threads run
        rank_log.say(f"{text} It is stopped (SIGSTOP)\n")
        return
    rank_log.say(f"{text} Its stack:\n")
    if own:
        faulthandler.dump_traceback(file=rank_log.terminal(), all_threads=True)
    else:
        with suppress(ProcessLookupError):
            os.kill(peer.process.pid, signal.SIGUSR2)
    time.sleep(1.0)


def report_dead(dead: Sequence[Peer]) -> NoReturn:
    """Name ranks that have died, with the last lines of their logs, then end this process."""
    for peer in dead:
        words = rank_log.last_words(peer.rank) if peer.rank else ""  # rank 0's are on the terminal
        if words:
            rank_log.say(f"\nijepa_ds: the last lines of {peer}:\n{words}\n")
    names = "; ".join(f"{peer} has died" for peer in dead)
    leave(f"{names} (killed, out of memory, or by an error it printed above)")


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
