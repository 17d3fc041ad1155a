"""Saving checkpoints: one folder a step, one safetensors file a rank, a checked manifest, one rename.

    RUN/checkpoints/step_00001000/
        shard_00000_of_00002.safetensors   this rank's pieces: master/NAME, exp_avg/NAME, exp_avg_sq/NAME, ema/NAME
        manifest.json                      step, config, versions, and every file's size and checksum

Pieces are parts of flattened parameters with their offsets, so that a run saved by any number of ranks at any ZeRO stage
is read back by any other. Nothing random is saved: data order, crops and masks are functions of the step.

A save copies the pieces into host memory, which the step waits for, and writes behind, on a thread. That thread never
talks to other ranks: they learn from the loop's agreement when all have written, and rank 0 then makes the files current.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ijepa_ds.checkpoint import writer
from ijepa_ds.distributed.exchange import broadcast_object, gather_objects
from ijepa_ds.errors import CheckpointError
from ijepa_ds.zero.ema import ShardedEMA
from ijepa_ds.zero.layout import Piece, ZeroLayout

logger = logging.getLogger(__name__)
_MOMENTS = ("exp_avg", "exp_avg_sq")
Beat = Callable[[str], None]
Bad = Iterable[tuple[str | int, ...]]


def _ignore(_: str) -> None:
    pass


class NotFiniteError(CheckpointError):
    """What was to be saved is not finite: training has broken down."""


@dataclass
class _Job:
    """One save on its way: first every rank writes, then rank 0 commits."""

    step: int
    facts: dict[str, Any]
    bad: set[tuple[str | int, ...]]
    began: float
    thread: threading.Thread
    result: Any = None  # what the thread gave: a manifest entry
    problem: tuple[bool, str] | None = None  # whether training has broken down, and what went wrong
    committing: bool = False


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
        self._layout, self._ema, self._run_dir = layout, ema, run_dir
        self._every, self._keep_last, self._keep_every = every, keep_last, keep_every
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._attempt: str = broadcast_object(secrets.token_hex(4))
        numel = (1 + len(_MOMENTS)) * sum(piece.numel for piece in _mine(layout, layout.pieces))
        numel += sum(piece.numel for piece in _mine(layout, ema.pieces))
        # the last element is Adam's step; pinned, so that a GPU copies into it by itself
        self._host = layout.scratch(numel + 1, "checkpoint")
        self._host.zero_()  # have the memory now: the first save would wait for its pages
        self._job: _Job | None = None
        self._failed, self._again, self._warned = False, 0, False

    @property
    def busy(self) -> bool:
        """Whether this rank's thread is still at work; for the agreement."""
        return self._job is not None and self._job.thread.is_alive()

    @property
    def unfinished(self) -> bool:
        """Whether a save is under way that is not safe yet; the same on every rank."""
        return self._job is not None

    def due(self, done: int) -> bool:
        """Whether to save after `done` steps: it is time, or the last save failed some steps ago."""
        return done % self._every == 0 or (self._failed and not self._job and done >= self._again)

    def start(self, done: int, facts: dict[str, Any], bad: Bad = (), beat: Beat = _ignore) -> None:
        """Copy the state after `done` steps and begin to write it; waits for the save before, if that is still going on.

        Args:
            done: optimizer steps done.
            facts: JSON-able things a reader wants (config, fingerprint, versions, samples seen); those of rank 0 count.
            bad: rows on images that this rank could not read; those of all ranks are saved.
            beat: called now and then while waiting.
        """
        if self._job:
            if self._rank == 0 and not self._warned:
                logger.warning(
                    "the checkpoint of step %d is still being written, and that of step %d is due: training waits. "
                    "A larger run.checkpoint_every avoids it",
                    self._job.step,
                    done,
                )
                self._warned = True
            self.finish(beat)
        self._failed = False
        began = time.monotonic()
        tensors, starts, ready = self._copy()
        path = writer.partial_folder(self._run_dir, done, self._attempt)
        path /= f"shard_{self._rank:05d}_of_{self._world_size:05d}.safetensors"

        def write() -> dict[str, Any]:
            if ready:
                ready.synchronize()
            if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
                raise NotFiniteError(f"{path.name}: master weights, moments or EMA are not finite")
            entry = writer.write_shard(path, tensors, starts)
            return entry | {"rank": self._rank, "host": socket.gethostname(), "adam_step": int(self._host[-1])}

        self._job = _Job(done, facts, set(bad), began, threading.Thread())
        self._run(write)

    def advance(self, done: int, anyone_busy: bool) -> None:
        """Go on with a save whose threads have all ended.

        Args:
            done: optimizer steps done.
            anyone_busy: whether any rank's thread was at work, as all ranks agreed.

        Raises:
            NotFiniteError: the state is not worth saving.
        """
        if not self._job or anyone_busy:
            return
        job = self._job
        job.thread.join()
        results = gather_objects((job.result, job.bad, job.problem))
        problems = [problem for *_, problem in results if problem]
        if problems:
            self._give_up(done, problems)
        elif job.committing:
            self._job = None
            if self._rank == 0:
                logger.info("checkpoint of step %d is safe after %.1f s", job.step, time.monotonic() - job.began)
        else:
            job.committing = True
            if self._rank == 0:
                bad = sorted(set().union(*(bad for _, bad, _ in results)))
                self._run(lambda: self._commit([entry for entry, *_ in results], bad))

    def finish(self, beat: Beat = _ignore) -> bool:
        """Wait until the save under way is safe; False when the last one failed.

        Raises:
            NotFiniteError: the state is not worth saving.
        """
        while job := self._job:
            while job.thread.is_alive():
                job.thread.join(1.0)
                beat("checkpoint")
            self.advance(job.step, anyone_busy=False)
        return not self._failed

    def _run(self, work: Callable[[], Any]) -> None:
        job = self._job
        assert job is not None

        def body() -> None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)  # of this thread alone: steps go first
            try:
                job.result = work()
            except Exception as error:  # whatever it is, all ranks must hear of it
                job.problem = (isinstance(error, NotFiniteError), f"rank {self._rank} on {socket.gethostname()}: {error}")

        job.thread = threading.Thread(target=body, name="checkpoint", daemon=True)
        job.thread.start()

    def _commit(self, entries: list[dict[str, Any]], bad: list[tuple[str | int, ...]]) -> None:
        job = self._job
        assert job is not None
        adam_steps = {entry.pop("adam_step") for entry in entries}
        assert len(adam_steps) == 1, f"ranks differ in Adam's step: {adam_steps}"
        manifest = {
            "format": 1,
            "step": job.step,
            "world_size": self._world_size,
            "zero_stage": self._layout.stage,
            "adam_step": adam_steps.pop(),
            **job.facts,
            "bad_samples": bad,
            "files": entries,
        }
        writer.commit(self._run_dir, job.step, self._attempt, manifest, self._keep_last, self._keep_every)

    def _give_up(self, done: int, problems: list[tuple[bool, str]]) -> None:
        """Say why a save failed, make room, and plan another; the same on every rank."""
        job, self._job = self._job, None
        assert job is not None
        self._failed, self._again = True, done + max(1, self._every // 10)
        text = f"checkpoint of step {job.step} NOT SAVED; older ones are untouched: {'; '.join(text for _, text in problems)}"
        if self._rank == 0:
            shutil.rmtree(writer.partial_folder(self._run_dir, job.step, self._attempt), ignore_errors=True)
        if any(broken for broken, _ in problems):
            raise NotFiniteError(text)
        if self._rank == 0:
            logger.error("%s", text)

    def _copy(self) -> tuple[dict[str, Tensor], dict[str, int], torch.cuda.Event | None]:
        """This rank's pieces in host memory, where each starts in its flattened parameter, and when they have arrived."""
        tensors: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        filled = 0

        def add(key: str, piece: Piece, values: Tensor) -> None:
            nonlocal filled
            tensors[key], starts[key] = self._host.narrow(0, filled, piece.numel), piece.start
            tensors[key].copy_(values, non_blocking=True)  # in the stream's order: before the next step overwrites it
            filled += piece.numel

        layout, ema = self._layout, self._ema
        for piece in _mine(layout, layout.pieces):
            add(f"master/{piece.name}", piece, layout.view(layout.master(piece.slot), piece))
            moments = layout.moments(piece.slot)
            for key in _MOMENTS if moments else ():
                add(f"{key}/{piece.name}", piece, layout.view(moments[key], piece))
        for piece in _mine(layout, ema.pieces):
            add(f"ema/encoder.{piece.name}", piece, ema.layout.view(ema.average[piece.slot], piece))
        step = layout.moments(0).get("step", torch.zeros(()))
        self._host[-1:].copy_(step.reshape(1), non_blocking=True)
        if layout.engine.device.type != "cuda":
            return tensors, starts, None
        ready = torch.cuda.Event()
        ready.record()
        return tensors, starts, ready


def _mine(layout: ZeroLayout, pieces: list[Piece]) -> list[Piece]:
    """The pieces this rank writes: its own under ZeRO; where all ranks hold everything, an equal part of each."""
    if not layout.replicated:
        return [piece for piece in pieces if piece.numel]
    rank, ranks, parts = dist.get_rank(), dist.get_world_size(), []
    for piece in pieces:
        low, high = piece.numel * rank // ranks, piece.numel * (rank + 1) // ranks
        if high > low:
            parts.append(replace(piece, start=piece.start + low, numel=high - low, offset=piece.offset + low))
    return parts
