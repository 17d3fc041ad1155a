"""The watch among 1,024 ranks: real watches of three of them and a real store; the other ranks are reports in the store."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.distributed import TCPStore

from ijepa_ds.cluster import judge, watch
from ijepa_ds.cluster.job_store import JobStore, period_of, report_key
from ijepa_ds.cluster.leave import Limit
from ijepa_ds.cluster.meeting import Meeting
from ijepa_ds.cluster.peers import Peer, Report
from ijepa_ds.cluster.processes import Process
from ijepa_ds.cluster.watch import Watch
from tests.waiting import limit, wait_until

RANKS, A_HOST = 1024, 8
REAL = (0, 1, 600)  # two of one host, one elsewhere
STUCK = 777
TICK = 0.1


def place_of(rank: int) -> str:
    return f"host-{rank // A_HOST}"


class World:
    """1,024 ranks, of which `REAL` have watches; the others report what `report` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: dict[int, Any] = {}  # rank -> how its watch ended it
        self.looks = dict.fromkeys(REAL, 0)  # requests for news
        self.report: Callable[[int, int], Report | None] = lambda rank, tick: Report(tick, beats=tick)
        self._end = threading.Event()
        self._server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(self._server.port))
        monkeypatch.setattr(watch, "_TICK", TICK)
        monkeypatch.setattr(watch.processes, "launchers", list)
        monkeypatch.setattr(watch, "leave", self._leave)
        monkeypatch.setattr(watch, "leave_hang", self._leave_hang)
        self._count_looks(monkeypatch)
        self._others = threading.Thread(target=self._be_others, daemon=True)
        self._publish(0)
        self._others.start()
        self.watches = {rank: Watch() for rank in REAL}

    def follow(self, seconds: float) -> None:
        """Begin to watch; `seconds` without a beat are allowed."""
        me = Process.of(os.getpid())
        assert me is not None
        for rank in reversed(REAL):  # rank 0 waits until the others watch
            first = rank // A_HOST * A_HOST
            known = range(RANKS) if rank == 0 else sorted({0, *range(first, first + A_HOST)})
            peers = {other: Peer(other, place_of(other), place_of(other), me, 0.0) for other in known}
            self.watches[rank]._thread.start()  # `start` also registers a signal
            self.watches[rank].follow(Meeting(peers, RANKS, A_HOST, None), rank, Limit(seconds))

    def close(self) -> None:
        self._end.set()
        for one in self.watches.values():
            one.close()
            if one._thread.ident:
                one._thread.join()
        self._others.join()

    def _be_others(self) -> None:
        tick = 0
        while not self._end.wait(2 * TICK):
            tick += 1
            self._publish(tick)

    def _publish(self, tick: int) -> None:
        store = self._server
        if tick == 0:
            store.add("ijepa_ds/watching", RANKS - len(REAL))
            for rank in REAL:  # the meeting does so
                store.set(report_key(rank), Report().to_text())
        for rank in set(range(RANKS)) - set(REAL):
            if (report := self.report(rank, tick)) is not None:
                store.set(report_key(rank), report.to_text())

    def _count_looks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = JobStore.news

        def news(store: JobStore) -> Any:
            self.looks[store._rank] += 1
            return real(store)

        monkeypatch.setattr(JobStore, "news", news)

    def _leave(self, text: str = "", code: int = 0) -> None:
        self._note(self._who(), text)

    def _leave_hang(self, peers: Any, rank: int, verdict: Any, limit: Any, *, elsewhere: Any, period: float) -> None:
        self._note(rank, (verdict, period))

    def _who(self) -> int:
        return next(rank for rank, one in self.watches.items() if one._thread is threading.current_thread())

    def _note(self, rank: int, how: Any) -> None:
        """The process would end here: its watch does."""
        self.left.setdefault(rank, how)
        self.watches[rank].close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.close()


def test_each_rank_but_the_first_looks_every_second_tick(world: World) -> None:
    assert period_of(RANKS) == 2
    began = time.monotonic()
    world.follow(seconds=limit(60))
    wait_until(lambda: world.looks[600] >= 10, 60, "looks of rank 600")
    assert not world.left and time.monotonic() - began >= 2 * 9 * TICK
    wait_until(lambda: world.looks[0] > world.looks[600], 60, "looks of rank 0")


def test_one_of_1024_ranks_that_is_stuck_is_named_to_all(world: World) -> None:
    late = threading.Event()

    def report(rank: int, tick: int) -> Report:
        stuck = rank == STUCK
        if not late.is_set():
            return Report(tick, beats=7)
        return Report(tick, 7 if stuck else 8, "waiting for images" if stuck else "after forward", True, not stuck, 5, 3.5)

    world.report = report
    world.follow(seconds=3.0)
    for rank in REAL:  # these got as far as the others, and wait
        world.watches[rank].alive("after forward")
        world.watches[rank]._beats, world.watches[rank]._step = 8, 5
    late.set()
    wait_until(lambda: len(world.left) == len(REAL), 60, lambda: f"verdicts {world.left}")
    verdicts = [how[0] for how in world.left.values()]
    assert verdicts[0] == verdicts[1] == verdicts[2] and {how[1] for how in world.left.values()} == {2 * TICK}
    assert verdicts[0].ranks == [STUCK] and verdicts[0].places == [place_of(STUCK)]
    assert verdicts[0].words[0].startswith(f"rank {STUCK} on host {place_of(STUCK)} (process ")
    assert verdicts[0].words[0].endswith("hangs: no progress for 4 s (run.hang_timeout: 3 s) at step 5, waiting for images")
    assert verdicts[0].words[1:] == [
        "the others: ranks 0, 1, 600 at step 5, after forward; "
        "ranks 2-599, 601-776, 778-1023 at step 5, after forward, in a collective"
    ]


def test_a_silent_host_of_1024_ranks_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (judge, watch):
        monkeypatch.setattr(module, "SILENCE", 2.0)
    lost = range(800, 808)
    world.report = lambda rank, tick: None if rank in lost and tick > 2 else Report(tick, beats=tick)
    world.follow(seconds=limit(60))
    wait_until(lambda: 0 in world.left, 60, "rank 0 to leave")
    assert world.left[0].count("has not been heard of for 2 s") == 8 and "rank 800 on host host-100" in world.left[0]
    assert list(world.left) == [0]


def test_a_failure_on_one_host_is_learned_on_another(world: World) -> None:
    world.follow(seconds=limit(60))
    stuck = Peer(STUCK, place_of(STUCK), place_of(STUCK), Process(1, 1), 0.0)
    JobStore(STUCK, RANKS).claim_failure(stuck)
    wait_until(lambda: set(world.left) == set(REAL), 60, lambda: f"{world.left}")
    assert f"rank {STUCK} on host {place_of(STUCK)}" in world.left[0] and "failed; its traceback is in its log" in world.left[0]
    assert world.left[1] == ""  # one speaker a host; rank 600 is not the lowest of its host
