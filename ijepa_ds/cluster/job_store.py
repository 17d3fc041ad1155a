"""What the watches of a job share: a key-value store in the process of rank 0."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import TCPStore

from ijepa_ds.cluster.judge import Verdict
from ijepa_ds.cluster.peers import Peer, Report

SUSPENDED = 20.0  # seconds: a loop of one second that took so long was suspended with its process
_A_SECOND, _LONGEST_PERIOD = 512, 8  # ranks that ask rank 0's store in a second; seconds
_WATCHING = "ijepa_ds/watching"  # how many ranks are connected
_NEWS = "ijepa_ds/news"  # the first failure or verdict; one key, as every rank asks for it all the time


def period_of(world_size: int) -> int:
    """Seconds between two looks of a rank at the store: with many ranks, each looks less often."""
    return min(_LONGEST_PERIOD, -(-world_size // _A_SECOND))


def report_key(rank: int) -> str:
    """Where a rank's report is."""
    return f"ijepa_ds/alive/{rank}"


class Failed(NamedTuple):
    """The first rank that failed by an exception of its own: its number, host and process in words, and its place."""

    rank: int
    name: str
    place: str


class News(NamedTuple):
    """What the ranks have published for all; the first of both is kept.

    Attributes:
        failed: the first rank that failed.
        verdict: rank 0's, if the job hangs.
    """

    failed: Failed | None = None
    verdict: Verdict | None = None

    @classmethod
    def from_text(cls, text: str) -> News:
        """The inverse of `to_text`."""
        failed, verdict = json.loads(text)
        return cls(failed and Failed(*failed), verdict and Verdict(*verdict))

    def to_text(self) -> str:
        """JSON for the store."""
        return json.dumps(self)


class JobStore:
    """A connection to the store. Every method raises RuntimeError, ValueError or OSError if rank 0 does not answer."""

    def __init__(self, rank: int, world_size: int) -> None:
        """Connect, and publish an empty report."""
        self._rank, self._keys = rank, [report_key(other) for other in range(world_size)]
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=20))
        self.publish(Report())
        self._store.add(_WATCHING, 1)

    def wait_for_all(self, seconds: float) -> None:
        """On rank 0: wait, for so many seconds at most, until every rank is connected."""
        end = time.monotonic() + seconds
        while self._store.add(_WATCHING, 0) < len(self._keys) and time.monotonic() < end:
            time.sleep(0.05)

    def publish(self, report: Report) -> None:
        """Replace this rank's report."""
        self._store.set(self._keys[self._rank], report.to_text())

    def reports(self) -> list[Report]:
        """The newest report of every rank."""
        return [Report.from_text(text.decode()) for text in self._store.multi_get(self._keys)]

    def report(self, rank: int) -> Report:
        """The newest report of one rank."""
        return Report.from_text(self._store.get(self._keys[rank]).decode())

    def claim_failure(self, peer: Peer) -> News:
        """Publish that a rank failed, unless there are news already; the news."""
        return self._tell(News(failed=Failed(peer.rank, str(peer), peer.place)))

    def publish_verdict(self, verdict: Verdict) -> None:
        """Tell all ranks which ones hang, unless one has failed."""
        self._tell(News(verdict=verdict))

    def _tell(self, news: News) -> News:
        return News.from_text(self._store.compare_set(_NEWS, "", news.to_text()).decode())

    def news(self) -> News:
        """Failure or verdict, if there is one."""
        return News.from_text(self._store.get(_NEWS).decode()) if self._store.check([_NEWS]) else News()


class RequestTimer:
    """Limits the time of requests; the store itself has no timeout when a cable is cut. Enter it around each request."""

    def __init__(self) -> None:
        self._began: float | None = None  # of the pending request

    def __enter__(self) -> None:
        """A request begins."""
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        """It has ended."""
        self._began = None

    def limit(self, seconds: float, on_timeout: Callable[[], None], closed: threading.Event) -> None:
        """From now on, call `on_timeout` in a thread when a request takes longer than `seconds`, until `closed`."""
        threading.Thread(target=self._check, args=(seconds, on_timeout, closed), name="watch-store", daemon=True).start()

    def _check(self, seconds: float, on_timeout: Callable[[], None], closed: threading.Event) -> None:
        last = time.monotonic()
        while not closed.wait(1.0):
            now, began = time.monotonic(), self._began
            suspended, last = now - last > SUSPENDED, now
            if began is None or now - began < seconds:
                continue
            if suspended:
                self._began = now
            else:
                on_timeout()
