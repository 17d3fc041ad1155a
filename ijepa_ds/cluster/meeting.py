"""The meeting of a run's ranks before there is a process group: a bounded wait that knows by name who has not come.

PyTorch waits half an hour for ranks that never come, and does not name them. Here every rank writes its host and process
into the store at MASTER_ADDR:MASTER_PORT, in rank 0's process. From then on its `Watch` notices when one of them ends.

Three things bound the wait for `run.start_timeout` seconds: every rank looks for rank 0's store and for the others until
then; the first one that gives up tells the others; a thread ends a rank whose store stops to answer.

The store serves thousands of ranks: each one says once that it is there, and then looks at one small key (`_OUTCOME`), with
growing pauses. Rank 0 reads every arrival once, and publishes for each host the ranks of that host.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple

import torch
from torch.distributed import TCPStore

from ijepa_ds.cluster.expected import expected_hosts
from ijepa_ds.cluster.job_store import report_key
from ijepa_ds.cluster.leave import leave
from ijepa_ds.cluster.peers import Peer, Report, describe_hosts, spell_ranks, this_place
from ijepa_ds.cluster.processes import Process
from ijepa_ds.distributed.environment import cannot_connect, ensure_address
from ijepa_ds.distributed.exchange import gather_objects
from ijepa_ds.errors import NetworkError
from ijepa_ds.exits import STOPPED

_ARRIVED = "ijepa_ds/arrived"  # how many have come; with a number: who
_OUTCOME, _MET = "ijepa_ds/outcome", "met"  # else the words of the one that gives up
_PAUSE, _LONGEST = 0.1, 1.0  # seconds between two looks at the store: of rank 0, and at most
_SLOWER = 0.05  # share of the wait that a pause lasts
_READ_BY_ALL = 2.0  # seconds for which the store stays after it says that the ranks give up; more than `_LONGEST`
_FOR_RANK_ZERO = 2.0  # seconds after the limit in which rank 0 gives up for all; then the others do, one after another
_NO_ANSWER = 10.0  # seconds after the limit, when the store does not answer


class Meeting(NamedTuple):
    """The ranks of a run that this one has to know, and the store through which they met.

    Attributes:
        peers: rank -> where it runs, in order: on rank 0 all ranks, on others those of the same host and rank 0.
        world_size: number of ranks.
        elsewhere: the lowest rank that is not on rank 0's host, or None.
        store: keep it: on rank 0 it is the server that the process group uses too. None for a rank that is alone, and
            where there is a process group already.
    """

    peers: dict[int, Peer]
    world_size: int
    elsewhere: int | None
    store: TCPStore | None


def meet(rank: int, world_size: int, timeout: float) -> Meeting:
    """Wait for all ranks; every rank calls it, before `initialise_distributed`.

    Args:
        rank: this one.
        world_size: number of ranks.
        timeout: seconds to wait at most (`run.start_timeout`).

    Raises:
        NetworkError: names the ranks that have not come, and their hosts where the launcher tells them.
    """
    me = json.dumps([rank, socket.gethostname(), this_place(), *_identity()])
    store: TCPStore | None = None
    if torch.distributed.is_initialized():
        known = gather_objects(me)
        elsewhere = _elsewhere(_peers(known))
    elif world_size == 1:
        known, elsewhere = [me], None
    else:
        ensure_address()
        with _end_after(timeout):
            store, known, elsewhere = _Wait(rank, world_size, timeout).until_all_are_here(me)
    return Meeting(_peers(known), world_size, elsewhere, store)


def _identity() -> tuple[int, int]:
    me = Process.of(os.getpid())
    assert me is not None
    return me.pid, me.started


def _peers(texts: Iterable[str]) -> dict[int, Peer]:
    """Rank -> peer in order, of what the ranks wrote about themselves."""
    return {peer.rank: peer for peer in sorted(map(_peer, texts), key=lambda peer: peer.rank)}


def _peer(text: str) -> Peer:
    rank, host, place, pid, started = json.loads(text)
    return Peer(rank, host, place, Process(pid, started), time.monotonic())


def _elsewhere(peers: Mapping[int, Peer]) -> int | None:
    return min((rank for rank, peer in peers.items() if peer.place != peers[0].place), default=None)


@contextmanager
def _end_after(timeout: float) -> Iterator[None]:
    """End this process when the block takes much longer than `timeout` seconds: the store has no time limit of its own."""
    text = (
        f"rank 0's store at {_address()} does not answer any more (run.start_timeout: {timeout:g} s): its process is stopped, "
        "or its host or the network is down"
    )
    timer = threading.Timer(timeout + _NO_ANSWER, leave, (text, STOPPED))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _address() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


class _Wait:
    """One rank's wait for the others."""

    def __init__(self, rank: int, world_size: int, timeout: float) -> None:
        self._rank, self._world_size, self._timeout = rank, world_size, timeout
        self._end = time.monotonic() + timeout
        self._counted = 0  # arrivals
        self._unread = set[int]()  # of them: about to be written, or of a rank that died before it wrote
        self._texts: dict[int, str] = {}  # what each rank wrote about itself
        self._came: dict[int, Peer] = {}

    def until_all_are_here(self, me: str) -> tuple[TCPStore, list[str], int | None]:
        """The store, what the ranks that this one has to know wrote about themselves, and `Meeting.elsewhere`."""
        try:
            store = self._connect()
            store.set(report_key(self._rank), Report().to_text())  # rank 0's watch may read all of them at once
            store.set(f"{_ARRIVED}/{store.add(_ARRIVED, 1)}", me)
            known, elsewhere = self._lead(store) if self._rank == 0 else self._follow(store)
            return store, known, elsewhere
        except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
            if self._rank == 0:
                raise cannot_connect(error) from error
            raise NetworkError(
                f"rank 0 was at {_address()} and is gone: it has died or given up, or its host or the network is down "
                f"({str(error).splitlines()[0]})"
            ) from error

    def _connect(self) -> TCPStore:
        """Open the store on rank 0 (the launcher `torchrun` opens one itself), and connect to it on the others."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        opens = self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        if not opens:
            self._find_store(address, port)
        limit = timedelta(seconds=max(1.0, self._end - time.monotonic()))
        return TCPStore(
            address,
            port,
            world_size=self._world_size,
            is_master=opens,
            timeout=limit,
            wait_for_workers=False,
            multi_tenant=True,
        )

    def _find_store(self, address: str, port: int) -> None:
        """Wait until somebody listens there; signals are heeded meanwhile, which PyTorch's own wait does not do."""
        problem = ""
        while time.monotonic() < self._end:
            try:
                socket.create_connection((address, port), timeout=max(0.1, self._end - time.monotonic())).close()
                return
            except OSError as error:
                problem = error.strerror or str(error)
            time.sleep(_PAUSE)
        raise NetworkError(
            f"rank 0 has not come within {self._timeout:g} s (run.start_timeout): nobody answers at {_address()} ({problem}); "
            f"{_expected([0])}. It died, never started, or the network keeps its port from this host"
        )

    def _lead(self, store: TCPStore) -> tuple[list[str], int | None]:
        """Rank 0: wait for all, then tell every host which ranks it has."""
        while len(came := self._read(store)) < self._world_size:
            if store.check([_OUTCOME]):
                raise NetworkError(store.get(_OUTCOME).decode())
            died = [peer for peer in came.values() if peer.place == this_place() and peer.process.state() == "X"]
            if died:
                names = "; ".join(f"{peer} has died" for peer in died)
                text = f"{names} before all ranks had met (killed, out of memory, or by an error it printed above)"
                self._settle(store, text)
            if time.monotonic() > self._end:
                self._give_up(store)
            time.sleep(_PAUSE)
        hosts: dict[str, list[str]] = {}
        for rank, peer in sorted(came.items()):
            hosts.setdefault(peer.place, []).append(self._texts[rank])
        elsewhere = _elsewhere(came)
        for place, texts in hosts.items():
            known = texts if place == came[0].place else [self._texts[0], *texts]
            store.set(_host_key(place), json.dumps([known, elsewhere]))
        self._settle(store, _MET)
        return list(self._texts.values()), elsewhere

    def _follow(self, store: TCPStore) -> tuple[list[str], int | None]:
        """Another rank: wait for the outcome."""
        began, patience = time.monotonic(), _FOR_RANK_ZERO + min(5.0, self._rank / 100)
        while not store.check([_OUTCOME]):
            now = time.monotonic()
            if now > self._end + patience:
                self._give_up(store)
            time.sleep(min(_LONGEST, _PAUSE + _SLOWER * (now - began)))
        if (outcome := store.get(_OUTCOME).decode()) != _MET:
            raise NetworkError(outcome)
        known, elsewhere = json.loads(store.get(_host_key(this_place())))
        return known, elsewhere

    def _read(self, store: TCPStore) -> dict[int, Peer]:
        """Every rank that has come; each arrival is read once."""
        count = store.add(_ARRIVED, 0)
        self._unread |= set(range(self._counted + 1, count + 1))
        self._counted = count
        for number in [number for number in sorted(self._unread) if store.check([f"{_ARRIVED}/{number}"])]:
            text = store.get(f"{_ARRIVED}/{number}").decode()
            peer = _peer(text)
            self._texts[peer.rank], self._came[peer.rank] = text, peer
            self._unread.remove(number)
        return self._came

    def _give_up(self, store: TCPStore) -> None:
        """The time is over: name who is missing, unless the last one has just come."""
        came = self._read(store)
        missing = sorted(set(range(self._world_size)) - set(came))
        if missing:
            self._settle(store, self._without(missing, [came[rank] for rank in sorted(came)]))

    def _settle(self, store: TCPStore, outcome: str) -> None:
        """Tell the others; raise if the ranks give up. The first one that gives up is the one whose words all ranks use."""
        told = store.compare_set(_OUTCOME, "", outcome).decode()
        if told == _MET:
            return
        if self._rank == 0:
            with suppress(KeyboardInterrupt):
                time.sleep(_READ_BY_ALL)
        raise NetworkError(told)

    def _without(self, missing: list[int], came: list[Peer]) -> str:
        verb = "has" if len(missing) == 1 else "have"
        return (
            f"{spell_ranks(missing)} of {self._world_size} {verb} not come within {self._timeout:g} s (run.start_timeout): "
            f"{_expected(missing, came)}. Died, never started, or cannot reach {_address()}; here are {describe_hosts(came)}"
        )


def _host_key(place: str) -> str:
    return f"ijepa_ds/host/{hashlib.sha256(place.encode()).hexdigest()[:32]}"


def _expected(missing: list[int], came: list[Peer] | None = None) -> str:
    """On which hosts ranks were to run: "rank 3 on host node-2"."""
    hosts = expected_hosts()
    return ", ".join(f"rank {rank} {hosts.where(rank, {peer.rank: peer.host for peer in came or ()})}" for rank in missing[:16])
