"""Saving checkpoints: one folder a step, one safetensors file a rank, a manifest with checksums, one rename.

    RUN/checkpoints/step_00001000/
        shard_00000_of_00002.safetensors   this rank's pieces: master/NAME, exp_avg/NAME, exp_avg_sq/NAME, ema/NAME
        manifest.json                      step, config, versions, and every file's size and checksum

Pieces are parts of flattened parameters with their offsets, so that any number of ranks at any ZeRO stage can read what any
other has saved. No random state is saved: data order, crops and masks are functions of the step.

A save first copies the pieces into host memory, which training waits for. A thread then writes them while training goes on.
The threads never talk to other ranks: every step the ranks exchange whether any thread is still at work, and the state
changes on all ranks at the same step:

    IDLE, FAILED --start--> WRITING --advance: all have written--> COMMITTING --advance: rank 0 has committed--> IDLE
                            WRITING, COMMITTING --advance: a rank has failed--> FAILED
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ijepa_ds.checkpoint import ranges, writer
from ijepa_ds.checkpoint.run_lock import check_lock
from ijepa_ds.checkpoint.snapshot import Snapshot
from ijepa_ds.distributed.exchange import broadcast_object, decide, gather_on_first, max_over_ranks
from ijepa_ds.durable import thread_work
from ijepa_ds.errors import CheckpointError, is_fault
from ijepa_ds.zero.ema import ShardedEMA
from ijepa_ds.zero.layout import ZeroLayout

logger = logging.getLogger(__name__)
Beat = Callable[[], None]
_NAMED = 8  # ranks in a message
Bad = Iterable[tuple[str | int, ...]]


def _ignore() -> None:
    pass


class NotFiniteError(CheckpointError):
    """The state to save is not finite: training has diverged."""


class State(Enum):
    """Of a `Saver`; the same on every rank."""

    IDLE = auto()  # no save is under way, and the last one succeeded
    WRITING = auto()  # every rank writes its file
    COMMITTING = auto()  # rank 0 makes the files the newest checkpoint
    FAILED = auto()  # no save is under way; the last one failed and is tried again


@dataclass(frozen=True)
class _Save:
    """What is being saved."""

    step: int
    facts: dict[str, Any]
    bad: list[tuple[str | int, ...]]
    began: float


class _Task:
    """A function on a thread; it leaves a result or an error."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self._work = work
        self._seen: list[str] = []
        self.thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self.thread.start()

    def has_moved(self) -> bool:
        """Whether the thread has read, written or computed anything since the last call."""
        before, self._seen = self._seen, thread_work(self.thread.native_id or 0)
        return self._seen != before

    def _run(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)  # of this thread alone: steps have priority
        try:
            self.result = self._work()
        except Exception as error:  # any error must reach the other ranks
            self.error = error


class Saver:
    """The checkpoints of a run; every rank has one and calls the same methods at the same steps."""

    def __init__(
        self, layout: ZeroLayout, ema: ShardedEMA, run_dir: Path, *, every: int, keep_last: int, keep_every: int = 0
    ) -> None:
        """Allocate the host memory of a copy; nothing is written yet.

        Args:
            layout: where the master weights and moments to save are.
            ema: the average to save.
            run_dir: the run.
            every: steps between checkpoints.
            keep_last: newest checkpoints kept.
            keep_every: checkpoints of steps that this divides are kept for good; 0: none.
        """
        self._stage, self._run_dir = layout.stage, run_dir
        self._every, self._keep_last, self._keep_every = every, keep_last, keep_every
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._attempt: str = broadcast_object(secrets.token_hex(4))
        self._snapshot = Snapshot(layout, ema)
        self._state, self._retry_at = State.IDLE, 0
        self._save: _Save | None = None  # in WRITING and COMMITTING
        self._task: _Task | None = None  # of this rank, in WRITING and on rank 0 in COMMITTING
        self._warned = False
        self._whole: set[int] = set()  # steps whose checkpoint rank 0 has found complete
        self._ranges = ranges.Ranges()  # rank 0's table of what each file has
        self._sent = b""  # what this rank has last told rank 0 of its file
        self.fault = False  # whether faults of the storage alone made the last save fail, which may pass

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is at work; every rank passes the maximum over ranks to `advance`."""
        return self._task is not None and self._task.thread.is_alive()

    @property
    def unfinished(self) -> bool:
        """Whether a save is under way that is not safe yet; the same on every rank."""
        return self._state in (State.WRITING, State.COMMITTING)

    def due(self, done: int) -> bool:
        """Whether to save after `done` steps: regularly, and some steps after a save has failed."""
        return done % self._every == 0 or (self._state is State.FAILED and done >= self._retry_at)

    def start(self, done: int, facts: dict[str, Any], bad: Bad = (), beat: Beat = _ignore) -> None:
        """Copy the state after `done` steps and begin to write it; first finish the save before, if it is under way.

        Args:
            done: optimizer steps done.
            facts: JSON-able values for readers (config, fingerprint, versions, samples seen); rank 0's are saved.
            bad: rows on unreadable images; rank 0's are saved.
            beat: called about once a second while this rank's thread gets on.

        Raises:
            NotFiniteError: the state of the save before was not finite.
        """
        if self._save:
            if self._rank == 0 and not self._warned:
                logger.warning(
                    "the checkpoint of step %d is still being written, and that of step %d is due: training waits. "
                    "If no signal asked for it, a larger run.checkpoint_every avoids it",
                    self._save.step,
                    done,
                )
                self._warned = True
            self.finish(beat)
        self._save, self._state = _Save(done, facts, sorted(bad), time.monotonic()), State.WRITING
        copied = self._snapshot.take()
        path = writer.partial_folder(self._run_dir, done, self._attempt)
        path /= f"shard_{self._rank:05d}_of_{self._world_size:05d}.safetensors"

        def write() -> dict[str, Any]:
            copied.wait()
            if not copied.is_finite():
                raise NotFiniteError(f"{path.name}: master weights, moments or EMA are not finite")
            entry = writer.write_shard(path, copied.tensors, copied.starts)
            entry |= {"rank": self._rank, "host": socket.gethostname(), "adam_step": int(copied.adam)}
            return entry | {"ranges": ranges.pack(copied.starts, copied.tensors)}

        self._task = _Task(write)

    def advance(self, done: int, anyone_busy: bool) -> None:
        """Continue the save under way, if there is one and the threads of all ranks have ended.

        Args:
            done: optimizer steps done.
            anyone_busy: the maximum of `busy` over ranks.

        Raises:
            NotFiniteError: the state to save is not finite.
        """
        if not self._save or anyone_busy:
            return
        task, self._task = self._task, None
        if task:
            task.thread.join()
        error = task.error if task else None
        if max_over_ranks(error is not None):
            self._fail(done, error)
        elif self._state is State.WRITING:
            self._commit(task.result if task else None)
        else:
            self._complete()

    def finish(self, beat: Beat = _ignore) -> bool:
        """Wait until the save under way is safe; False when the last one failed.

        Raises:
            NotFiniteError: the state to save is not finite.
        """
        while self._save:
            if self._task:
                beat()
            while self._task and self._task.thread.is_alive():
                self._task.thread.join(1.0)
                if self._task.has_moved():  # a thread that waits for a disk for ever is a hang
                    beat()
            self.advance(self._save.step, anyone_busy=False)
        return self._state is not State.FAILED

    def _commit(self, entry: dict[str, Any] | None) -> None:
        """WRITING -> COMMITTING: rank 0 gets the files' entries and starts to commit."""
        self._state = State.COMMITTING
        save = self._save
        assert save is not None
        if entry is not None:
            same, self._sent = entry["ranges"] == self._sent, entry["ranges"]
            entry["ranges"] = None if same else self._sent  # most often the same as in the save before
        written = gather_on_first(entry)
        if written is not None:
            self._task = _Task(lambda: self._write_manifest(save, written))

    def _write_manifest(self, save: _Save, entries: list[Any]) -> None:
        """Make the files the newest checkpoint; `entries` has an entry of every rank."""
        check_lock(self._run_dir)
        self._ranges.update([entry.pop("ranges") for entry in entries])
        adam_steps = {entry.pop("adam_step") for entry in entries}
        assert len(adam_steps) == 1, f"ranks differ in Adam's step: {adam_steps}"
        manifest = {
            "format": 1,
            "step": save.step,
            "world_size": self._world_size,
            "zero_stage": self._stage,
            "adam_step": adam_steps.pop(),
            **save.facts,
            "bad_samples": save.bad,
            "files": entries,
            "ranges": self._ranges.table(),
        }
        writer.commit(self._run_dir, save.step, self._attempt, manifest, self._keep_last, self._keep_every, self._whole)

    def _complete(self) -> None:
        """COMMITTING -> IDLE."""
        save, self._save, self._state = self._save, None, State.IDLE
        if self._rank == 0 and save:
            logger.info("checkpoint of step %d is safe after %.1f s", save.step, time.monotonic() - save.began)

    def _fail(self, done: int, error: Exception | None) -> None:
        """WRITING or COMMITTING -> FAILED: log the reasons of all ranks, free the disk, and schedule another save."""
        save, self._save, self._state = self._save, None, State.FAILED
        assert save is not None
        self._retry_at = done + max(1, self._every // 10)
        where = f"rank {self._rank} on {socket.gethostname()}"
        problem = (isinstance(error, NotFiniteError), _is_fault(error), f"{where}: {error}") if error else None
        diverged, fault, reasons = decide(problem, _summary)
        text = f"checkpoint of step {save.step} NOT SAVED; older ones are untouched: {reasons}"
        if self._rank == 0:
            shutil.rmtree(writer.partial_folder(self._run_dir, save.step, self._attempt), ignore_errors=True)
        if diverged:
            raise NotFiniteError(text)
        self.fault = fault
        if self._rank == 0:
            logger.error("%s", text)


def _summary(every: list[tuple[bool, bool, str] | None]) -> tuple[bool, bool, str]:
    """Of the (diverged, fault of the storage, text) of all ranks: whether any diverged, whether all are faults, the texts."""
    found = [problem for problem in every if problem]
    more = f"; and {len(found) - _NAMED} more ranks" if len(found) > _NAMED else ""
    texts = "; ".join(text for *_, text in found[:_NAMED]) + more
    return any(diverged for diverged, *_ in found), all(fault for _, fault, _ in found), texts


def _is_fault(error: Exception) -> bool:
    """Whether an error of writing comes from a fault of the storage."""
    causes = (error, error.__cause__)
    return any(isinstance(cause, OSError) and is_fault(cause) for cause in causes)
