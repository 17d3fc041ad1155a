"""A thread on every rank that detects what the rank itself cannot: a dead peer, a dead launcher, a hang.

A rank waits in a collective for half an hour before NCCL or gloo gives up, and neither names the rank that is missing.
This thread checks the processes of its host once a second, and publishes a report in the key-value store that rank 0's
process keeps. When it finds a fault, it prints one message that names rank and host, and ends the process (code 70).

    who                       waits for                                         at most         then
    ------------------------  ------------------------------------------------  --------------  -----------------------------
    a rank (launcher ended)   its next tick                                     1 s             `on_launcher_lost`: save, stop
    a rank before it meets    its configuration, and Python's packages          900 s            names its host
    a rank (neighbour ended)  its own `close`                                   0.5 s           the lowest rank left names it
    a rank that fails         the end of a neighbour that caused the failure    2 s             claims that it failed first
    the other ranks           the first failed rank to print its reason         8 s             leave
    a rank on another host    rank 0's store to answer                          40 s            rank 0 cannot be reached
    a rank (store refused)    its own `close`, or a fault found in another way  5 s             rank 0 cannot be reached
    rank 0                    the next report of every rank on other hosts      30 s            names the silent ranks
    rank 0                    its own next beat, and 2 s for news of the others `hang_timeout`  publishes which ranks hang
    a rank without a beat     that verdict, or a report of rank 0               + 30 s          rank 0 hangs

With more than 512 ranks, each one looks at the store every 2 to 8 s instead of every second (`job_store.period_of`).
`judge.Role` has the times after a verdict. Neighbours are the other ranks of the same host.
The decisions are in `judge.py`, the store in `job_store.py`, the exits in `leave.py`; this file has the thread and its clocks.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ijepa_ds.cluster import processes, rank_log
from ijepa_ds.cluster.job_store import SUSPENDED, Failed, JobStore, RequestTimer, period_of
from ijepa_ds.cluster.judge import SILENCE, Hang, Lost, State, Verdict, is_overdue, judge, places_of, words
from ijepa_ds.cluster.leave import Limit, is_communicating, leave, leave_hang, report_dead
from ijepa_ds.cluster.meeting import Meeting
from ijepa_ds.cluster.peers import Peer, Report, describe_hosts
from ijepa_ds.exits import STOPPED

_TICK = 1.0
_JUDGE_EVERY = 3  # ticks
_FIRST = 900.0  # to read the configuration and load packages, before a key can say so
_ANSWER = 40.0  # for rank 0's store on another host: the store has no timeout when a cable is cut
_ALL_WATCH = 10.0  # for all ranks to come from their meeting
_REFUSED = 5.0  # after an error of the store, in which `close` or a named death may come first
_LAST_WORD = 8.0  # for the first failed rank to print its reason
_CLOSING = 0.5  # a neighbour may have closed and ended when this rank is about to close


class _Failure(NamedTuple):
    first: Failed
    since: float  # local time at which this rank learned of it


class Watch:
    """Watches launchers from `start` on, peers and progress from `follow` on, until `close`."""

    def __init__(self) -> None:
        self._launchers = processes.launchers()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._closed = threading.Event()
        self._peers: dict[int, Peer] = {}  # on rank 0 of all ranks, else of this host and of rank 0
        self._period = 1  # ticks between two looks at the store
        self._rank, self._limit = 0, Limit()
        self._meeting: Meeting | None = None  # keeps the server of the store
        self._store: JobStore | None = None
        self._step, self._beats, self._phase, self._progress = 0, 0, "start", time.monotonic()
        self._main = threading.main_thread().ident
        self._requests = RequestTimer()
        self._failure: _Failure | None = None
        self.on_launcher_lost: Callable[[], None] | None = None  # None: end the process

    def start(self) -> None:
        """Start the thread, with a limit for what comes before the ranks meet.

        From now on SIGUSR2 prints all Python stacks, even while the main thread hangs in C.
        """
        self._limit = Limit(_FIRST, "", STOPPED)
        faulthandler.register(signal.SIGUSR2, file=rank_log.terminal(), all_threads=True)
        self._thread.start()

    def follow(self, meeting: Meeting, rank: int, limit: Limit) -> None:
        """Watch the other ranks, which have met and may have no process group yet; every rank calls it.

        Args:
            meeting: from `meeting.meet`.
            rank: this one.
            limit: how long the job may be without a `beat`, until `expect` sets another limit.
        """
        self._meeting, self._rank = meeting, rank
        now = time.monotonic()
        self._limit, self._progress = limit, now
        for peer in meeting.peers.values():
            peer.heard = now
        if meeting.world_size > 1:
            self._store = JobStore(rank, meeting.world_size)
            self._period = period_of(meeting.world_size)
        self._peers = meeting.peers  # last: the thread waits for it
        if self._peers[0].place != self._place:
            self._requests.limit(_ANSWER, self._on_no_answer, self._closed)
        if self._store and rank == 0:
            self._store.wait_for_all(_ALL_WATCH)  # if rank 0 dies before, those that still look for its store cannot name it

    def expect(self, limit: Limit, part: str) -> None:
        """From now on the job may be without a `beat` for another time; `part` is completed, see `beat`."""
        self.beat(part)
        self._limit = limit

    def beat(self, part: str) -> None:
        """Note that this rank has completed a part that every rank goes through, equally often; cheap."""
        self._beats += 1
        self._phase, self._progress = f"after {part}", time.monotonic()

    def alive(self, phase: str) -> None:
        """Note that this rank gets on with something long, in which ranks rightly differ; cheap."""
        self._phase, self._progress = phase, time.monotonic()

    def doing(self, phase: str) -> None:
        """Note that this rank begins something, for messages; no sign of progress."""
        self._phase = phase

    def begin(self, step: int) -> None:
        """Note that this rank begins a step (0-based)."""
        self._step = step + 1

    def claim_failure(self) -> bool:
        """Publish that this rank failed; False if another one failed or died before, which then is the cause."""
        if self._store is None:
            return True
        end = time.monotonic() + 2.0
        while time.monotonic() < end:  # a broken connection is noticed before the death that caused it
            if any(peer.process.state() == "X" for peer in self._neighbours()):
                return False  # `_check_neighbours` names it and ends this process
            time.sleep(0.1)
        try:
            first = self._store.claim_failure(self._peers[self._rank]).failed
        except (RuntimeError, ValueError, OSError):
            return False
        if first is None:  # a verdict came before
            return False
        self._note_failure(first, time.monotonic())
        return self._state is State.OWN_FAILURE

    def where(self) -> str:
        """Which ranks are on which host, for messages of rank 0."""
        return describe_hosts(self._peers.values())

    def close(self) -> None:
        """Stop watching. After a barrier that follows it, ranks may end in any order."""
        self._closed.set()

    @property
    def _place(self) -> str:
        return self._peers[self._rank].place

    @property
    def _state(self) -> State:
        if self._failure is None:
            return State.WATCHING
        return State.OWN_FAILURE if self._failure.first.rank == self._rank else State.PEER_FAILURE

    def _neighbours(self) -> list[Peer]:
        return [peer for peer in self._peers.values() if peer.place == self._place and peer.rank != self._rank]

    def _stopped(self) -> set[int]:
        """Neighbours that are stopped (SIGSTOP)."""
        return {peer.rank for peer in self._neighbours() if peer.process.state() == "T"}

    # ---- the thread --------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        last, ticks = time.monotonic(), 0
        while not self._closed.wait(_TICK):
            now, ticks = time.monotonic(), ticks + 1
            if now - last > SUSPENDED:  # all clocks start again
                self._progress = now
                for peer in self._peers.values():
                    peer.heard = now
            last = now
            self._check_launchers()
            if len(self._peers) > 1:
                self._check_neighbours()
                if self._rank == 0 or (ticks + self._rank) % self._period == 0:
                    self._use_store(now, ticks)
            elif is_overdue(now, self._progress, self._limit.seconds):
                self._end_alone(now, ticks)

    def _end_alone(self, now: float, ticks: int) -> None:
        """End because of this rank, which knows no other one; before the ranks have met, one rank a host speaks."""
        if self._peers:
            self._peers[0].report = self._report(now, ticks)
            self._end_hang([0])
        elif os.environ.get("LOCAL_RANK", "0") == "0":
            rank_log.say(
                f"\nijepa_ds: no progress for {self._limit.seconds:.0f} s at the start of this host's ranks, {self._phase}: a "
                "file system does not answer. The stack of one of them:\n"
            )
            faulthandler.dump_traceback(file=rank_log.terminal(), all_threads=True)
            leave(f"host {socket.gethostname()} cannot start", self._limit.code)
        else:
            leave(code=self._limit.code)

    def _check_launchers(self) -> None:
        dead = [process.pid for process in self._launchers if process.state() == "X"]
        if not dead:
            return
        self._launchers = []
        if self.on_launcher_lost:
            self.on_launcher_lost()
        else:
            leave(f"the launcher (process {dead[0]}) has ended: nothing to save yet")

    def _check_neighbours(self) -> None:
        dead = [peer for peer in self._neighbours() if peer.process.state() == "X"]
        if not dead or self._closed.wait(_CLOSING) or self._state is State.OWN_FAILURE:
            return
        alive = [p.rank for p in self._peers.values() if p.place == self._place and p.process.state() != "X"]
        if self._state is State.PEER_FAILURE or self._rank != min(alive):
            leave()  # the failed rank, or the lowest one here, prints the reason
        report_dead(dead)

    # ---- the store ---------------------------------------------------------------------------------------------------
    def _use_store(self, now: float, ticks: int) -> None:
        """Publish a report, read failure and verdict; on rank 0 also judge."""
        store, overdue = self._store, is_overdue(now, self._progress, self._limit.seconds)
        assert store is not None
        if 0 in self._stopped():  # its store would not answer
            if overdue:
                self._end_hang([0])
            return
        try:
            with self._requests:
                store.publish(self._report(now, ticks))
                failed, verdict = store.news()
                if overdue and self._rank != 0:
                    self._peers[0].hear(store.report(0), now)
                if self._rank == 0 and ticks % _JUDGE_EVERY == 0:
                    self._judge(store, now)
        except (RuntimeError, ValueError, OSError) as error:
            self._on_refusal(error)
            return
        self._heed_failure(failed, now)
        silent = self._rank != 0 and now - self._peers[0].heard > SILENCE
        if verdict:
            self._leave_hang(verdict)
        if overdue and silent and now - self._progress > self._limit.seconds + SILENCE:
            self._end_hang([0])  # its watch should have published a verdict, or at least a report

    def _report(self, now: float, ticks: int) -> Report:
        overdue = is_overdue(now, self._progress, self._limit.seconds)
        communicates = overdue and is_communicating(self._main)
        age = round(now - self._progress, 1)
        return Report(ticks, self._beats, self._phase, overdue, communicates, self._step, age)

    def _on_refusal(self, error: Exception) -> None:
        """The store, in rank 0's process, refused a request: end, unless the job ends in another way."""
        if self._closed.wait(_REFUSED) or 0 in self._stopped() or self._state is State.OWN_FAILURE:
            return
        if self._state is State.PEER_FAILURE:
            self._leave_after_failure()
        self._check_neighbours()  # a death on this host may have broken the connection
        self._lose_rank_zero((str(error) or type(error).__name__).splitlines()[0])

    def _on_no_answer(self) -> None:
        self._lose_rank_zero(f"no answer for {_ANSWER:.0f} s: its host or the network is down, or it is stopped")

    def _lose_rank_zero(self, reason: str) -> None:
        leave(f"{self._peers[0]} cannot be reached by rank {self._rank} any more ({reason})")

    def _note_failure(self, first: Failed, now: float) -> None:
        self._failure = _Failure(first, now)
        if self._state is State.PEER_FAILURE:
            rank_log.mute()  # its reason should be the last thing on the terminal

    def _heed_failure(self, first: Failed | None, now: float) -> None:
        """Learn which rank failed first, if any, and later end after it."""
        if self._failure is None:
            if first is not None:
                self._note_failure(first, now)
        elif self._state is State.PEER_FAILURE and now - self._failure.since > _LAST_WORD:
            self._leave_after_failure()

    def _leave_after_failure(self) -> None:
        """End because another rank failed; on each other host, the lowest rank names it."""
        assert self._failure is not None
        failed = self._failure.first
        here = [peer.rank for peer in self._peers.values() if peer.place == self._place]
        names_it = self._place != failed.place and self._rank == min(here)
        leave(f"{failed.name} failed; its traceback is in its log" if names_it else "")

    def _judge(self, store: JobStore, now: float) -> None:
        peers = list(self._peers.values())
        for peer, report in zip(peers, store.reports(), strict=True):
            peer.hear(report, now)
        verdict = judge(
            peers,
            place=self._place,
            stopped=self._stopped(),
            now=now,
            progress=self._progress,
            timeout=self._limit.seconds and self._limit.seconds + self._period + 1,  # the others have said they are overdue
        )
        if isinstance(verdict, Lost):
            names = "; ".join(f"{self._peers[rank]} has not been heard of for {SILENCE:.0f} s" for rank in verdict.ranks)
            leave(f"{names} (its host or the network is down, or it is stopped)")
        elif isinstance(verdict, Hang):
            text = words(peers, verdict.ranks, self._allowed())
            store.publish_verdict(Verdict(verdict.ranks, text, places_of(self._peers, verdict.ranks)))

    def _allowed(self) -> str:
        return f"{self._limit.key}: {self._limit.seconds:g} s"

    def _end_hang(self, hanging: list[int]) -> None:
        """End because of ranks that this rank alone has found to hang."""
        named = [self._peers[rank] for rank in hanging]
        text = [f"{peer} hangs ({self._allowed()}), last seen at {peer.report.where()}" for peer in named]
        self._leave_hang(Verdict(hanging, text, places_of(self._peers, hanging)))

    def _leave_hang(self, verdict: Verdict) -> None:
        elsewhere = self._meeting.elsewhere if self._meeting else None
        leave_hang(self._peers, self._rank, verdict, self._limit, elsewhere=elsewhere, period=self._period * _TICK)
