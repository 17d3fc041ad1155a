"""The meeting of a run's ranks before there is a process group: a bounded wait that knows by name who has not come.

PyTorch waits half an hour for ranks that never come, and does not name them. Here every rank writes its host and process
into the store at MASTER_ADDR:MASTER_PORT, in rank 0's process. From then on its `Watch` notices when one of them ends.

Three things bound the wait for `run.start_timeout` seconds: every rank looks for rank 0's store and for the others until
then; the first one that gives up tells the others; a thread ends a rank whose store stops to answer.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
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

_ARRIVED, _GAVE_UP = "ijepa_ds/arrived", "ijepa_ds/gave_up"
_PAUSE = 0.1  # seconds between two looks at the store
_READ_BY_ALL = 2.0  # seconds for which the store stays after it says that the ranks give up
_NO_ANSWER = 10.0  # seconds after the limit, when the store does not answer


class Meeting(NamedTuple):
    """All ranks of a run, in order, and the store through which they met.

    Attributes:
        peers: where each rank runs.
        store: keep it: on rank 0 it is the server that the process group uses too. None for a rank that is alone, and
            where there is a process group already.
    """

    peers: list[Peer]
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
    me = json.dumps([socket.gethostname(), this_place(), *_identity()])
    store: TCPStore | None = None
    if torch.distributed.is_initialized():
        table = gather_objects(me)
    elif world_size == 1:
        table = [me]
    else:
        ensure_address()
        with _end_after(timeout):
            store, table = _Wait(rank, world_size, timeout).until_all_are_here(me)
    return Meeting([_peer(other, text) for other, text in enumerate(table)], store)


def _identity() -> tuple[int, int]:
    me = Process.of(os.getpid())
    assert me is not None
    return me.pid, me.started


def _peer(rank: int, text: str) -> Peer:
    host, place, pid, started = json.loads(text)
    return Peer(rank, host, place, Process(pid, started), time.monotonic())


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
        self._keys = [f"{_ARRIVED}/{other}" for other in range(world_size)]

    def until_all_are_here(self, me: str) -> tuple[TCPStore, list[str]]:
        """The store, and what every rank wrote about itself."""
        try:
            store = self._connect()
            store.set(self._keys[self._rank], me)
            store.set(report_key(self._rank), Report().to_text())  # rank 0's watch may read all of them at once
            store.add(_ARRIVED, 1)
            while store.add(_ARRIVED, 0) < self._world_size:
                self._look(store)
                time.sleep(_PAUSE)
            return store, [text.decode() for text in store.multi_get(self._keys)]
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

    def _look(self, store: TCPStore) -> None:
        """Raise if the others give up, one of them has died, or the time is over."""
        if store.check([_GAVE_UP]):
            raise NetworkError(store.get(_GAVE_UP).decode())
        here = [key for key in self._keys if store.check([key])] if self._rank == 0 or self._is_late() else []
        came = [_peer(self._keys.index(key), store.get(key).decode()) for key in here]
        died = [peer for peer in came if peer.place == this_place() and peer.process.state() == "X"]
        if died:
            names = "; ".join(f"{peer} has died" for peer in died)
            self._give_up(store, f"{names} before all ranks had met (killed, out of memory, or by an error it printed above)")
        if self._is_late():
            missing = sorted(set(range(self._world_size)) - {peer.rank for peer in came})
            if missing:  # else the last one has just come
                self._give_up(store, self._without(missing, came))

    def _is_late(self) -> bool:
        return time.monotonic() > self._end

    def _without(self, missing: list[int], came: list[Peer]) -> str:
        verb = "has" if len(missing) == 1 else "have"
        return (
            f"{spell_ranks(missing)} of {self._world_size} {verb} not come within {self._timeout:g} s (run.start_timeout): "
            f"{_expected(missing, came)}. Died, never started, or cannot reach {_address()}; here are {describe_hosts(came)}"
        )

    def _give_up(self, store: TCPStore, text: str) -> None:
        """Tell the others and raise; the first one that gives up is the one whose words all ranks use."""
        told = store.compare_set(_GAVE_UP, "", text).decode()
        if self._rank == 0:
            with suppress(KeyboardInterrupt):
                time.sleep(_READ_BY_ALL)
        raise NetworkError(told)


def _expected(missing: list[int], came: list[Peer] | None = None) -> str:
    """On which hosts ranks were to run: "rank 3 on host node-2"."""
    hosts = expected_hosts()
    return ", ".join(f"rank {rank} {hosts.where(rank, {peer.rank: peer.host for peer in came or ()})}" for rank in missing[:16])
