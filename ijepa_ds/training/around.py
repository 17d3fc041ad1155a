"""Everything beside the computation of a step: one ordered list of members, called once a step.

Most members communicate, so every rank calls the same members in the same order at the same steps.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

from torch import Tensor

from ijepa_ds.checkpoint import run_dir
from ijepa_ds.checkpoint.saver import Saver
from ijepa_ds.cluster.judge import EVAL, WRITE
from ijepa_ds.cluster.stop import Stopped, StopRequests
from ijepa_ds.distributed.agreement import Agreement, agree
from ijepa_ds.errors import CheckpointError, StorageError, UserError
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.ijepa import Output
from ijepa_ds.telemetry.metrics import peak_memory_gib
from ijepa_ds.training.ending import last_words
from ijepa_ds.training.feed import StepImages, StepMasks
from ijepa_ds.training.live_eval import LiveEval
from ijepa_ds.training.reporter import Reporter
from ijepa_ds.training.resolution import Resolutions
from ijepa_ds.training.skipped import SkippedSteps
from ijepa_ds.training.slowest import Figures, pack, unpack
from ijepa_ds.training.start import Run

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Made:
    """A finished step.

    Attributes:
        step: its 0-based number.
        last: whether it is the last step of the schedule.
        applied: whether the optimizer applied it; False if it was skipped because gradients were not finite.
        losses: scalars on the device, one for each micro-batch of this rank.
        result: of the last micro-batch.
        masks: of the last micro-batch.
        asked: signal number that some rank has received, 0 for none.
        writing: whether some rank is still writing a checkpoint.
        bad: the largest number of unreadable images that a rank has found and not exchanged yet.
        figures: maxima over ranks since the last point.
    """

    step: int
    last: bool
    applied: bool
    losses: list[Tensor]
    result: Output
    masks: Masks
    asked: int = 0
    writing: bool = False
    bad: int = 0
    figures: Figures | None = None

    @property
    def done(self) -> int:
        """Number of steps done, including this one."""
        return self.step + 1


class Member(Protocol):
    """Something to do after every step."""

    def after_step(self, made: Made) -> None:
        """Do what is due after the step; may raise to end the run."""


@dataclass
class BadImages:
    """Exchanges unreadable images between ranks when one has found some; the step's reduction says so."""

    run: Run
    batches: StepImages

    def after_step(self, made: Made) -> None:
        """Exchange the images found since the last call."""
        if made.bad:
            self.run.bad.agree(self.batches.loader)


@dataclass
class Report:
    """Updates progress bar, TensorBoard and health alarms."""

    run: Run
    batches: StepImages
    reporter: Reporter

    def after_step(self, made: Made) -> None:
        """Write what is due."""
        assert self.batches.pixels is not None
        bad = len(self.run.bad)
        assert made.figures is not None
        self.run.watch.doing("writing metrics and logs")
        self.reporter.after_step(made.step, made.result, made.masks, self.batches.pixels, made.applied, bad, made.figures)


@dataclass
class Skips:
    """Reports skipped steps; too many in a row end the run."""

    skipped: SkippedSteps

    def after_step(self, made: Made) -> None:
        """Count the step."""
        self.skipped.note(made.step, made.applied, made.losses)


@dataclass
class Saves:
    """Continues an asynchronous save once the writing threads of all ranks have finished."""

    saver: Saver

    def after_step(self, made: Made) -> None:
        """Continue with what the ranks have posted."""
        self.saver.advance(made.done, made.writing)


@dataclass
class Evaluations:
    """Evaluates the target encoder every `eval.every` steps, after the checkpoint of the step is safe."""

    run: Run
    reporter: Reporter
    saver: Saver
    mark: Callable[[str], None]

    def before_first_step(self) -> None:
        """Evaluate the step that the run continues from, if the last attempt ended before its scores were there."""
        if self.run.live and self.run.owes_evaluation():
            self._evaluate(self.run.live, self.run.start)

    def after_step(self, made: Made) -> None:
        """Evaluate if it is due."""
        live = self.run.live
        if live and live.due(made.done, self.run.schedule.total_steps):
            watch = self.run.watch
            self.saver.finish(lambda: watch.alive(WRITE))  # whatever happens in an evaluation, the step is not lost
            self._evaluate(live, made.done)

    def _evaluate(self, live: LiveEval, done: int) -> None:
        self.reporter.evaluated(done, live.run(done, lambda: self.run.watch.alive(EVAL)))
        self.mark("eval")


@dataclass
class Checkpoints:
    """Starts a save when it is due, at the end, and after a signal to stop."""

    run: Run
    reporter: Reporter
    saver: Saver
    mark: Callable[[str], None]

    def after_step(self, made: Made) -> None:
        """Start a save if one is due; wait for it if the run ends."""
        if not (made.last or made.asked or self.saver.due(made.done)):
            return
        window = [number * self.run.plan.micro_batch for number in self.reporter.before_checkpoint()]  # in images
        facts = self.run.facts | {"samples_seen": made.done * self.run.plan.batch_size, "loss_window": window}
        bad = self.run.bad.rows() if self.run.rank == 0 else ()  # rank 0 writes the manifest
        watch = self.run.watch
        self.saver.start(made.done, facts, bad, lambda: watch.alive(WRITE))
        if (made.last or made.asked) and not self.saver.finish(lambda: watch.alive(WRITE)):
            text = "the last state could not be saved (reason above)"
            then = "run the same command: it continues from the newest checkpoint"
            if self.saver.fault:
                raise StorageError(f"{text}. When the storage works again, {then}")
            raise CheckpointError(f"{text}. Free disk space or repair the disk, then {then}")
        self.mark("checkpoint")


class Stops:
    """Ends the run after a signal, when the state is saved."""

    def after_step(self, made: Made) -> None:
        """Raise `Stopped` if any rank was asked to stop."""
        if made.asked and not made.last:
            why = " (its launcher or terminal is gone)" if made.asked == signal.SIGHUP else ""
            raise Stopped(f"stopped by {signal.Signals(made.asked).name}{why} after step {made.done}")


class Around:
    """The members around the steps of a run; a context manager that closes loader and log."""

    def __init__(self, run: Run, stop: StopRequests) -> None:
        """Open the log, the loader and the buffers of checkpoints.

        Args:
            run: the run.
            stop: signals received by this rank.
        """
        self._run, self._stop = run, stop
        self._losses: list[Tensor] = []
        resolutions = Resolutions(run.cfg)
        window = [number / run.plan.micro_batch for number in run.window]  # micro-batches may have another size now
        self._reporter = agree(lambda: Reporter(run.cfg, run.engine, run.schedule, run.start, run.rank, window))
        options = run.cfg.run
        self._saver = Saver(
            run.engine.layout,
            run.engine.ema,
            Path(options.dir),
            every=options.checkpoint_every,
            keep_last=options.keep_last,
            keep_every=options.keep_every,
        )
        self._agreement = Agreement()
        self.batches = StepImages(run, resolutions, self.mark)
        self.sampler = StepMasks(run, resolutions, self.mark)
        self._evaluations = Evaluations(run, self._reporter, self._saver, self.mark)
        self._members: tuple[Member, ...] = (
            BadImages(run, self.batches),
            Report(run, self.batches, self._reporter),
            Skips(SkippedSteps(run.cfg, run.plan, run.folder, run.bad, run.rank)),
            Saves(self._saver),
            Checkpoints(run, self._reporter, self._saver, self.mark),
            self._evaluations,
            Stops(),
        )

    def __enter__(self) -> Around:
        """Remove the markers of a completed and of a stopped run."""
        for name in (run_dir.COMPLETED, run_dir.REQUESTED) if self._run.rank == 0 else ():
            (Path(self._run.cfg.run.dir) / name).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close loader and log; mark the run as completed if nothing was raised."""
        try:
            if isinstance(error, UserError):
                self._run.bad.note_before_stopping(self.batches.loader)
        finally:
            self.batches.close()
            self._reporter.close()
        if error is None and self._run.rank == 0:
            facts: dict[str, float] = {"steps": self._run.schedule.total_steps}
            if not math.isnan(self._reporter.last_loss):  # this process has made a point
                facts["loss"] = self._reporter.last_loss
            run_dir.mark_completed(Path(self._run.cfg.run.dir), facts)
            logger.info("%s", last_words(self._run.cfg, self._run.schedule.total_steps, self._reporter.last_loss))

    def before_first_step(self) -> None:
        """Make up an evaluation that the last attempt did not finish."""
        self._evaluations.before_first_step()

    def mark(self, part: str) -> None:
        """Record the end of a part of the step, for the clock and for the hang watch."""
        self._reporter.clock.mark(part)
        self._run.watch.beat(part)

    def forward(self, step: int, micro: int) -> AbstractContextManager[object]:
        """Context for a forward pass: records attention if a probe is due."""
        return self._reporter.watching(step, micro)

    def after_backward(self, result: Output) -> None:
        """Add the loss of a micro-batch; it stays on the device."""
        self.mark("backward")
        self.batches.stopwatch.worked()
        self._reporter.add(result)
        self._losses.append(result.loss.detach())

    def before_update(self) -> None:
        """Start the all-reduce of signals, save state and figures of this rank; it overlaps with the optimizer."""
        mine = self.batches.stopwatch
        figures = pack((mine.waiting, mine.working, peak_memory_gib(self._run.engine.device)), self._run.rank)
        self._agreement.post(self._stop.received, self._saver.busy, self._run.bad.new(self.batches.loader), *figures)

    def after_step(self, step: int, result: Output, masks: Masks, applied: bool) -> None:
        """Call every member, in order.

        Args:
            step: 0-based.
            result: of the last micro-batch.
            masks: of the last micro-batch.
            applied: whether the optimizer applied the step.

        Raises:
            Stopped, TrainingError, CheckpointError, ValueError: the run ends.
        """
        losses, self._losses = self._losses, []
        last = step + 1 == self._run.schedule.total_steps
        asked, writing, bad, *figures = self._agreement.wait()
        made = Made(
            step=step,
            last=last,
            applied=applied,
            losses=losses,
            result=result,
            masks=masks,
            asked=asked,
            writing=bool(writing),
            bad=bad,
            figures=unpack(figures),
        )
        if self._reporter.is_point(step):
            self.batches.stopwatch.reset()
        for member in self._members:
            member.after_step(made)
