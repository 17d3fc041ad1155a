"""A thread on every rank that notices what the rank itself cannot: a dead peer, a dead launcher, a hang.

A rank that waits for another in a collective waits long: NCCL and gloo give up after half an hour, and name nobody. This
thread looks once a second at the processes of its host, and tells rank 0 through the ranks' key-value store that it lives
and how far it has come. What it finds ends the process, with one message that names rank and host.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch

from ijepa_ds.cluster import rank_log
from ijepa_ds.cluster.processes import Process, supervisor
from ijepa_ds.distributed.world import gather_objects
from ijepa_ds.exits import LOST

_TICK = 1.0  # seconds between looks
_SILENCE = 30.0  # seconds without a word from a rank of another host, after which it counts as lost
_ANSWER = 40.0  # seconds that rank 0's store, on another host, may take to answer: it has no timeout for a cut cable
_LAST_WORD = 8.0  # seconds after a rank has failed, in which it is left alone to say so
_FAILED = "ijepa_ds/failed"
_LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "deepspeed.launcher.runner", "torchrun", "torch.distributed.run"}


def launchers_above() -> list[Process]:
    """What this process was started by, nearest first: `deepspeed` is two processes, a supervisor may be above."""
    found: list[Process] = []
    pid = os.getppid()
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            break
        names = {os.path.basename(word) for word in words[:5]} | {word for word in words[:5]}
        process = Process.of(pid)
        if not names & _LAUNCHERS or not process:
            break
        found.append(process)
        pid = process.parent()
    above = supervisor()
    return [*found, above] if above else found


@dataclass
class _Peer:
    rank: int
    host: str
    place: str  # host and process-number space: where `process` can be looked at
    process: Process
    word: str = ""  # what it published last
    heard: float = 0.0  # when that changed, by our clock


class Watch:
    """Watches from `start` on for launchers, from `follow` on for peers and hangs, until `close`."""

    def __init__(self) -> None:
        self._launchers = launchers_above()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._closed = threading.Event()
        self._peers: list[_Peer] = []
        self._rank, self._timeout = 0, 0.0
        self._store: torch.distributed.TCPStore | None = None
        self._beats, self._phase, self._moved = 0, "start", time.monotonic()
        self._main = threading.main_thread().ident
        self._asked: float | None = None  # since when we wait for the store
        self._failed: int | None = None  # the first rank that failed of itself
        self._failed_since = 0.0
        self.on_launcher_lost: Callable[[], None] | None = None  # instead of ending the process

    def start(self) -> None:
        """Begin to look; SIGUSR2 shows the stacks of a process from now on, even of one that hangs in C."""
        faulthandler.register(signal.SIGUSR2, file=rank_log.terminal(), all_threads=True)
        self._thread.start()

    def follow(self, timeout: float) -> None:
        """Watch the other ranks; every rank calls it.

        Args:
            timeout: seconds without `beat` after which the job is ended; 0: never.
        """
        me = Process.of(os.getpid())
        place = f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
        table = gather_objects((socket.gethostname(), place, me))
        rank = torch.distributed.get_rank()
        if len(table) > 1:
            self._store = torch.distributed.TCPStore(
                os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=20)
            )
            self._store.set(_key(rank), "start")
        gather_objects(None)  # now every key is there
        now = time.monotonic()
        self._rank, self._timeout, self._moved = rank, timeout, now
        self._peers = [_Peer(r, host, place, process, heard=now) for r, (host, place, process) in enumerate(table)]
        if self._peers[0].place != place:
            threading.Thread(target=self._watch_the_store, name="watch-store", daemon=True).start()

    def beat(self, phase: str) -> None:
        """The rank has come to the end of `phase`; cheap."""
        self._beats += 1
        self._phase, self._moved = phase, time.monotonic()

    def claim_failure(self) -> bool:
        """Tell the other ranks that this one failed; False when another did before, or is gone: then ours follows from it."""
        if self._store is None:
            return True
        end = time.monotonic() + 2.0
        while time.monotonic() < end:  # a broken connection is met before the death behind it shows
            if any(peer.process.state() == "X" for peer in self._neighbours()):
                return False  # `_look_at_neighbours` names it, and ends this process
            time.sleep(0.1)
        try:
            first = self._store.compare_set(_FAILED, "", str(self._rank))
        except (RuntimeError, ValueError, OSError):
            return False
        self._failed, self._failed_since = int(first), time.monotonic()
        if self._failed != self._rank:
            rank_log.mute()
        return self._failed == self._rank

    def where(self) -> str:
        """Which ranks are on which host, for people."""
        hosts: dict[str, list[int]] = {}
        for peer in self._peers:
            hosts.setdefault(peer.host, []).append(peer.rank)
        return "; ".join(f"{host}: {_span(ranks)}" for host, ranks in hosts.items())

    def close(self) -> None:
        """Stop looking. When all ranks are past it (a barrier), they may end in any order."""
        self._closed.set()

    # ---- the thread --------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        last, ticks = time.monotonic(), 0
        while not self._closed.wait(_TICK):
            now, ticks = time.monotonic(), ticks + 1
            if now - last > 20 * _TICK:  # the whole process was suspended: nobody is late
                self._moved = now
                for peer in self._peers:
                    peer.heard = now
            last = now
            self._look_at_launchers()
            if len(self._peers) > 1:
                self._look_at_neighbours()
                self._asked = now
                self._exchange(now, ticks)
                self._asked = None
            elif self._peers and 0 < self._timeout < now - self._moved:
                self._end_hang([0])

    def _watch_the_store(self) -> None:
        """End this process when rank 0's host does not answer: `_run` is then stuck inside its question."""
        last = time.monotonic()
        while not self._closed.wait(_TICK):
            now, asked = time.monotonic(), self._asked
            suspended, last = now - last > 20 * _TICK, now
            if asked is None or now - asked < _ANSWER:
                continue
            if suspended:  # not the network, but this process stood still
                self._asked = now
                continue
            reason = f"no answer for {_ANSWER:.0f} s: its host or the network is down, or it is stopped"
            _leave(f"{_name(self._peers[0])} cannot be reached by rank {self._rank} any more ({reason})", LOST)

    def _look_at_launchers(self) -> None:
        gone = [process.pid for process in self._launchers if process.state() == "X"]
        if not gone:
            return
        self._launchers = []
        if self.on_launcher_lost:
            self.on_launcher_lost()
        else:
            _leave(f"the launcher (process {gone[0]}) is gone: nothing to save yet", LOST)

    def _neighbours(self) -> list[_Peer]:
        return [peer for peer in self._peers if peer.place == self._peers[self._rank].place and peer.rank != self._rank]

    def _look_at_neighbours(self) -> None:
        dead = [peer for peer in self._neighbours() if peer.process.state() == "X"]
        if not dead or self._closed.wait(0.5):  # it may have closed and left while ours was about to
            return
        if self._failed == self._rank:  # about to tell the user, and to end
            return
        if self._failed is not None:  # it has told the user itself
            _leave("", LOST)
        speaker = min(p.rank for p in self._peers if p.place == dead[0].place and p.process.state() != "X")
        if speaker == self._rank:
            for peer in dead:
                words = rank_log.last_words(peer.rank) if peer.rank else ""  # rank 0's are on the terminal
                if words:
                    rank_log.say(f"\nijepa_ds: the last lines of {_name(peer)}:\n{words}\n")
        names = "; ".join(f"{_name(peer)} has died" for peer in dead)
        _leave(names + " (killed, out of memory, or by an error it printed above)" if speaker == self._rank else "", LOST)

    def _look_at_failed(self, store: torch.distributed.TCPStore, now: float) -> None:
        """End with the first rank that failed: after it has told the user why, so that this is what stands last."""
        if self._failed is None:
            if store.check([_FAILED]):
                self._failed, self._failed_since = int(store.get(_FAILED)), now
                if self._failed != self._rank:
                    rank_log.mute()
        elif self._failed != self._rank and now - self._failed_since > _LAST_WORD:
            self._leave_after(self._peers[self._failed])

    def _leave_after(self, failed: _Peer) -> None:
        """End because another rank failed; on each other host, one rank says so."""
        here = self._peers[self._rank].place
        speaks = here != failed.place and self._rank == min(p.rank for p in self._peers if p.place == here)
        _leave(f"{_name(failed)} failed; its traceback is in its log" if speaks else "", LOST)

    def _exchange(self, now: float, ticks: int) -> None:
        """Tell the store that we live; rank 0 judges, the others look for its verdict."""
        store = self._store
        assert store is not None
        stuck = 0 < self._timeout < now - self._moved
        if self._judge_is_stopped():  # its store would not answer
            if stuck:
                self._end_hang([0])
            return
        try:
            waits = self._waits_in_communication() if stuck else False
            store.set(_key(self._rank), json.dumps([ticks, self._beats, self._phase, stuck, waits]))
            self._look_at_failed(store, now)
            if store.check(["ijepa_ds/verdict"]):
                self._end_hang(json.loads(store.get("ijepa_ds/verdict")))
            if self._rank == 0 and ticks % 3 == 0:
                self._judge(now)
        except (RuntimeError, ValueError, OSError) as error:  # the store is in rank 0's process
            if self._closed.wait(5.0) or self._judge_is_stopped() or self._failed == self._rank:
                return
            if self._failed is not None:
                self._leave_after(self._peers[self._failed])
            _leave(f"{_name(self._peers[0])} cannot be reached by rank {self._rank} any more ({_first_line(error)})", LOST)
        if stuck and now - self._moved > self._timeout + _SILENCE:
            self._end_hang([0])  # no verdict: the judge itself hangs

    def _judge_is_stopped(self) -> bool:
        return any(peer.rank == 0 and peer.process.state() == "T" for peer in self._neighbours())

    def _judge(self, now: float) -> None:
        assert self._store is not None
        words = self._store.multi_get([_key(peer.rank) for peer in self._peers])
        for peer, word in zip(self._peers, words, strict=True):
            if peer.word != word.decode():
                peer.word, peer.heard = word.decode(), now
        here = self._peers[0].place
        silent = [p for p in self._peers if now - p.heard > _SILENCE]
        lost = [p for p in silent if p.place != here]
        if lost:
            names = "; ".join(f"{_name(peer)} has not been heard of for {_SILENCE:.0f} s" for peer in lost)
            _leave(names + " (its host or the network is down, or it is stopped)", LOST)
        if 0 < self._timeout < now - self._moved:
            self._store.set("ijepa_ds/verdict", json.dumps(self._suspects(silent)))

    def _suspects(self, silent: list[_Peer]) -> list[int]:
        """Who keeps the others waiting: who is not heard of, else who is furthest behind, else who does not wait."""
        stopped = [peer.rank for peer in self._neighbours() if peer.process.state() == "T"]
        if stopped or silent:
            return sorted({*stopped, *(peer.rank for peer in silent)})
        told = {peer.rank: json.loads(peer.word) for peer in self._peers}  # [ticks, beats, phase, stuck, waits]
        least = min(word[1] for word in told.values())
        behind = [rank for rank, word in told.items() if word[1] == least]
        return [rank for rank in behind if not told[rank][4]] or behind

    def _waits_in_communication(self) -> bool:
        frame = sys._current_frames().get(self._main or 0)
        while frame:
            name = frame.f_code.co_filename
            if any(part in name for part in ("/torch/distributed/", "/deepspeed/comm/", "/ijepa_ds/distributed/agreement.py")):
                return True
            frame = frame.f_back
        return False

    def _end_hang(self, suspects: list[int]) -> None:
        """Name who hangs and show where, then end this process."""
        peers, me = self._peers, self._peers[self._rank]
        well = [p.rank for p in peers if p.place == me.place and p.rank not in suspects]
        here = [peers[rank] for rank in suspects if peers[rank].place == me.place]
        if not well or self._rank == min(well):
            for peer in here:
                stopped = " It is stopped (SIGSTOP)." if peer.process.state() == "T" else ""
                _say(f"{_name(peer)} hangs: no progress for {self._timeout:.0f} s (run.hang_timeout).{stopped} Its stack:")
                if peer is me:
                    faulthandler.dump_traceback(file=rank_log.terminal(), all_threads=True)
                else:
                    os.kill(peer.process.pid, signal.SIGUSR2)
                time.sleep(1.0)
        elif self._rank in suspects:
            faulthandler.dump_traceback(all_threads=True)  # into its own log
            time.sleep(4.0)  # until the neighbour has asked for the stack
        else:
            time.sleep(2.0)
        _leave("the job cannot go on: ending it" if self._rank == 0 else "", LOST)


def _key(rank: int) -> str:
    return f"ijepa_ds/alive/{rank}"


def _name(peer: _Peer) -> str:
    return f"rank {peer.rank} on host {peer.host} (process {peer.process.pid})"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _span(ranks: list[int]) -> str:
    if ranks == list(range(ranks[0], ranks[-1] + 1)) and len(ranks) > 1:
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _say(text: str) -> None:
    rank_log.say(f"\nijepa_ds: {text}\n")


def _leave(text: str, code: int) -> None:
    """End this process now: its main thread may never come back from where it waits."""
    if text:
        _say(f"{text}. The same command continues from the newest checkpoint")
    os._exit(code)
