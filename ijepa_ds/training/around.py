"""What happens around the steps: one ordered list, called once a step.

The order matters, and the same calls happen at the same steps on every rank, because most members talk to other ranks.
"""

from __future__ import annotations

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
from ijepa_ds.cluster.stop import Stopped, StopRequests
from ijepa_ds.distributed.agreement import Agreement, agree
from ijepa_ds.errors import CheckpointError
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model.ijepa import Output
from ijepa_ds.training.feed import StepImages, StepMasks
from ijepa_ds.training.reporter import Reporter
from ijepa_ds.training.resolution import Resolutions
from ijepa_ds.training.skipped import SkippedSteps
from ijepa_ds.training.start import Run


@dataclass(kw_only=True)
class Made:
    """A step that was just made.

    Attributes:
        step: its 0-based number.
        last: whether the schedule ends with it.
        applied: whether the optimizer applied it, or skipped it because gradients were not finite.
        losses: scalars on the device, one a micro-batch of this rank.
        result: of the last micro-batch.
        masks: of the last micro-batch.
        asked: number of the signal that any rank has received; 0: none. Known once `Saves` has run.
    """

    step: int
    last: bool
    applied: bool
    losses: list[Tensor]
    result: Output
    masks: Masks
    asked: int = 0

    @property
    def done(self) -> int:
        """Steps done, this one included."""
        return self.step + 1


class Member(Protocol):
    """One thing that happens after every step."""

    def after_step(self, made: Made) -> None:
        """Do what is due; may raise to end the run."""


@dataclass
class BadImages:
    """Ranks tell each other which images they could not read, whenever a point is logged."""

    run: Run
    batches: StepImages

    def after_step(self, made: Made) -> None:
        """Exchange what was found since the last call."""
        if made.done % self.run.cfg.run.log_every == 0 or made.last:
            self.run.bad.agree(self.batches.loader)


@dataclass
class Report:
    """Progress bar, TensorBoard, health alarms."""

    run: Run
    batches: StepImages
    reporter: Reporter

    def after_step(self, made: Made) -> None:
        """Write what is due."""
        assert self.batches.pixels is not None
        self.reporter.after_step(made.step, made.result, made.masks, self.batches.pixels, made.applied, len(self.run.bad))


@dataclass
class Skips:
    """Steps that the optimizer skipped are named; too many in a row end the run."""

    skipped: SkippedSteps

    def after_step(self, made: Made) -> None:
        """Count the step."""
        self.skipped.note(made.step, made.applied, made.losses)


@dataclass
class Saves:
    """A save under way goes on when the threads of all ranks have ended."""

    agreement: Agreement
    saver: Saver

    def after_step(self, made: Made) -> None:
        """Receive what `Around.before_update` has posted: the signal, and whether any rank still writes."""
        made.asked, writing = self.agreement.wait()
        self.saver.advance(made.done, bool(writing))


@dataclass
class Evaluations:
    """The run's own evaluation, where `eval.every` asks for one."""

    run: Run
    reporter: Reporter
    mark: Callable[[str], None]

    def after_step(self, made: Made) -> None:
        """Evaluate if it is due."""
        live = self.run.live
        if live and live.due(made.done, self.run.schedule.total_steps):
            self.reporter.evaluated(made.done, live.run(made.done, self.run.watch.beat))
            self.mark("eval")


@dataclass
class Checkpoints:
    """Saves begin when they are due, at the end, and when a signal asks the run to stop."""

    run: Run
    batches: StepImages
    reporter: Reporter
    saver: Saver
    mark: Callable[[str], None]

    def after_step(self, made: Made) -> None:
        """Begin a save if one is due; wait for it if it is the last one."""
        if not (made.last or made.asked or self.saver.due(made.done)):
            return
        self.reporter.before_checkpoint()
        self.run.bad.agree(self.batches.loader)
        facts = self.run.facts | {"samples_seen": made.done * self.run.plan.batch_size}
        self.saver.start(made.done, facts, self.run.bad.rows(), self.mark)
        if (made.last or made.asked) and not self.saver.finish(self.mark):
            raise CheckpointError(
                "the last state could not be saved (the reason stands above): make room, or mend the disk, then run the same "
                "command: it continues from the newest checkpoint"
            )
        self.mark("checkpoint")


class Stops:
    """Ends the run after a signal, once everything is saved."""

    def after_step(self, made: Made) -> None:
        """Raise `Stopped` if any rank was asked to stop."""
        if made.asked and not made.last:
            why = " (its launcher or terminal is gone)" if made.asked == signal.SIGHUP else ""
            raise Stopped(f"stopped by {signal.Signals(made.asked).name}{why} after step {made.done}")


class Around:
    """Everything around the steps of a run. Enter it before the first step; leaving it closes loader and log."""

    def __init__(self, run: Run, stop: StopRequests) -> None:
        """Open the log, the loader and the buffers of checkpoints.

        Args:
            run: the run.
            stop: signals received by this rank.
        """
        self._run, self._stop = run, stop
        self._losses: list[Tensor] = []
        resolutions = Resolutions(run.cfg)
        self._reporter = agree(lambda: Reporter(run.cfg, run.engine, run.schedule, run.start, run.rank))
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
        self._members: tuple[Member, ...] = (
            BadImages(run, self.batches),
            Report(run, self.batches, self._reporter),
            Skips(SkippedSteps(run.cfg, run.plan, run.folder, run.rank)),
            Saves(self._agreement, self._saver),
            Evaluations(run, self._reporter, self.mark),
            Checkpoints(run, self.batches, self._reporter, self._saver, self.mark),
            Stops(),
        )

    def __enter__(self) -> Around:
        """Mark the run as not completed."""
        if self._run.rank == 0:
            (Path(self._run.cfg.run.dir) / run_dir.COMPLETED).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close everything; mark the run as completed if nothing was raised."""
        try:
            if isinstance(error, ValueError):
                self._run.bad.note_before_stopping(self.batches.loader)
        finally:
            self.batches.close()
            self._reporter.close()
        if error is None and self._run.rank == 0:
            facts = {"steps": self._run.schedule.total_steps, "loss": self._reporter.last_loss}
            run_dir.mark_completed(Path(self._run.cfg.run.dir), facts)

    def mark(self, part: str) -> None:
        """A part of the step ends here: for the clock, and for whoever watches for hangs."""
        self._reporter.clock.mark(part)
        self._run.watch.beat(part)

    def forward(self, step: int, micro: int) -> AbstractContextManager[object]:
        """Enter it around a forward pass: probes look at attention where one is due."""
        return self._reporter.watching(step, micro)

    def after_backward(self, result: Output) -> None:
        """Count the loss of a micro-batch; it stays on the device."""
        self.mark("backward")
        self._reporter.add(result.loss)
        self._losses.append(result.loss.detach())

    def before_update(self) -> None:
        """Start to exchange signals and the state of saves; that is under way while the optimizer works."""
        self._agreement.post(self._stop.received, self._saver.busy)

    def after_step(self, step: int, result: Output, masks: Masks, applied: bool) -> None:
        """Call every member, in order.

        Args:
            step: 0-based.
            result: of the last micro-batch.
            masks: of the last micro-batch.
            applied: whether the optimizer applied the step.

        Raises:
            Stopped, TrainingError, CheckpointError, ValueError: the run ends here.
        """
        losses, self._losses = self._losses, []
        last = step + 1 == self._run.schedule.total_steps
        made = Made(step=step, last=last, applied=applied, losses=losses, result=result, masks=masks)
        for member in self._members:
            member.after_step(made)
