"""What the watches of a job cost the process of rank 0, which keeps their store.

    OMP_NUM_THREADS=1 python -m benchmarks.watch_store --ranks 512 4096

Another process sends the requests that the watches of all ranks send in one round (a report and a look for news each).
Printed: processor time of this process for a round, for reading and judging all reports, and both as a share of one core.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
from multiprocessing.connection import Connection

from torch.distributed import TCPStore

from ijepa_ds.cluster.job_store import JobStore, period_of
from ijepa_ds.cluster.judge import judge
from ijepa_ds.cluster.peers import Peer, Report
from ijepa_ds.cluster.processes import Process

JUDGE_EVERY = 3.0  # seconds, as in ijepa_ds/cluster/watch.py
REPEATS = 5


def others(requests: Connection) -> None:
    """In another process: for each (port, ranks) received, one round of the watches of all ranks, through one connection."""
    while (request := requests.recv()) is not None:
        port, ranks = request
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        store = JobStore(0, ranks)
        for rank in range(ranks):
            store._rank = rank
            store.publish(Report(12345, 100_000, "after backward", False, False, 50_000, 0.3))
            store.news()
        requests.send("done")


def _spent() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(ranks: int, other: Connection) -> tuple[float, float]:
    """Seconds of this process for a round of requests, and for reading and judging all reports."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(server.port))
    before = _spent()
    other.send((server.port, ranks))
    other.recv()
    requests = _spent() - before
    store, process = JobStore(0, ranks), Process(1, 1)
    peers = [Peer(rank, f"host-{rank // 8}", f"host-{rank // 8}", process, time.monotonic()) for rank in range(ranks)]
    before = _spent()
    for _ in range(REPEATS):
        now = time.monotonic()
        for peer, report in zip(peers, store.reports(), strict=True):
            peer.hear(report, now)
        judge(peers, place="host-0", stopped=(), now=now, progress=now, timeout=900.0)
    return requests, (_spent() - before) / REPEATS


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[512, 4096])
    args = parser.parse_args()
    context = multiprocessing.get_context("fork")  # before this process has a store and its threads
    ours, theirs = context.Pipe()
    process = context.Process(target=others, args=(theirs,), daemon=True)
    process.start()
    for ranks in args.ranks:
        requests, reading = measure(ranks, ours)
        second = requests / period_of(ranks) + reading / JUDGE_EVERY
        print(
            f"{ranks} ranks: {2 * ranks / period_of(ranks):.0f} requests/s, {requests / ranks / 2 * 1e6:.1f} us; reports, "
            f"every {JUDGE_EVERY:.0f} s: {reading * 1e3:.1f} ms; together {second:.2%} of a core"
        )
    ours.send(None)
    process.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
