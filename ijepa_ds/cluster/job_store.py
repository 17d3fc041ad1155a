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
from ijepa_ds.cluster.peers import Report

SUSPENDED = 20.0  # seconds: a loop of one second that took so long was suspended with its process
_FAILED, _VERDICT = "ijepa_ds/failed", "ijepa_ds/verdict"


def report_key(rank: int) -> str:
    """Where a rank's report is."""
    return f"ijepa_ds/alive/{rank}"


class News(NamedTuple):
    """What the ranks have published for all.

    Attributes:
        failed: the first rank that failed by an exception of its own.
        verdict: rank 0's, if the job hangs.
    """

    failed: int | None
    verdict: Verdict | None


class JobStore:
    """A connection to the store. Every method raises RuntimeError, ValueError or OSError if rank 0 does not answer."""

    def __init__(self, rank: int, world_size: int) -> None:
        """Connect, and publish an empty report."""
        self._rank, self._keys = rank, [report_key(other) for other in range(world_size)]
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=20))
        self.publish(Report())

    def publish(self, report: Report) -> None:
        """Replace this rank's report."""
        self._store.set(self._keys[self._rank], report.to_text())

    def reports(self) -> list[Report]:
        """The newest report of every rank."""
        return [Report.from_text(text.decode()) for text in self._store.multi_get(self._keys)]

    def report(self, rank: int) -> Report:
        """The newest report of one rank."""
        return Report.from_text(self._store.get(self._keys[rank]).decode())

    def claim_failure(self) -> int:
        """Publish that this rank failed, unless another one did; the rank that failed first."""
        return int(self._store.compare_set(_FAILED, "", str(self._rank)))

    def publish_verdict(self, verdict: Verdict) -> None:
        """Tell all ranks which ones hang."""
        self._store.set(_VERDICT, json.dumps(verdict))

    def news(self) -> News:
        """Failure and verdict, as far as there are."""
        failed = int(self._store.get(_FAILED)) if self._store.check([_FAILED]) else None
        return News(failed, Verdict(*json.loads(self._store.get(_VERDICT))) if self._store.check([_VERDICT]) else None)


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
