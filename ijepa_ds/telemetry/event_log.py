"""The writer of TensorBoard's event file and `metrics.jsonl`; write errors lose points but do not stop the run."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

from tensorboard.summary.writer import event_file_writer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ijepa_ds.errors import UserError
from ijepa_ds.telemetry.events import lines_of_events
from ijepa_ds.telemetry.metrics_file import NAME, MetricsFile

logger = logging.getLogger(__name__)
_QUICK = 5.0  # seconds: a restart may come within the second of the name before


class Log:
    """The event file on rank 0; a no-op on other ranks."""

    patience = 60.0  # seconds between attempts to reopen the file after an error

    def __init__(self, run_dir: Path, rank: int, purge_step: int) -> None:
        """Open the event file.

        Args:
            run_dir: Directory of the event file, for `tensorboard --logdir RUN`.
            rank: Rank of this process; only rank 0 writes.
            purge_step: TensorBoard hides earlier points at or after this step, for example from before a resume.

        Raises:
            ValueError: The file cannot be written.
        """
        self._run_dir, self._rank, self._again = run_dir, rank, 0.0
        self._writer: SummaryWriter | None = None
        self._file: MetricsFile | None = None
        self._lost = False  # whether the last line could not be written
        self._ahead = 0.0  # seconds by which the newest file of an earlier start is ahead of this machine's clock
        if rank == 0:
            try:
                self._writer = self._open(purge_step)
                begun = [] if (run_dir / NAME).exists() else lines_of_events(run_dir) if purge_step > 1 else []
                self._file = MetricsFile(run_dir, purge_step, begun)
            except OSError as error:
                raise UserError(
                    f"run.dir: TensorBoard's event file in {run_dir} cannot be written ({error.strerror or error}): choose "
                    "another directory, or make it writable"
                ) from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write scalars by tag at `step` (completed optimizer steps)."""

        def write(writer: SummaryWriter) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step, walltime=time.time() + self._ahead)

        self._try(write)
        self._note(step, values)

    def _note(self, step: int, values: dict[str, float]) -> None:
        """Add a line to `metrics.jsonl`."""
        if not self._file:
            return
        try:
            self._file.write(step, values)
            self._lost = False
        except OSError as error:
            if not self._lost:
                text = "%s in %s cannot be written (%s): lines are lost until it can"
                logger.error(text, NAME, self._run_dir, error.strerror or error)
            self._lost = True

    def text(self, tag: str, text: str, step: int | None = None) -> None:
        """Write a preformatted text."""
        self._try(lambda writer: writer.add_text(tag, "    " + text.replace("\n", "\n    "), step))

    def layout(self, layout: dict[str, dict[str, list[object]]]) -> None:
        """Write the layout of TensorBoard's "Custom Scalars" page (`dashboard.LAYOUT`)."""
        self._try(lambda writer: writer.add_custom_scalars(layout))

    def image(self, step: int, tag: str, picture: Tensor) -> None:
        """Write an image, uint8 `[H, W, 3]`."""
        self._try(lambda writer: writer.add_image(tag, picture, step, dataformats="HWC"))

    def flush(self) -> None:
        """Write pending events."""
        self._try(lambda writer: writer.flush())
        if self._file:
            with suppress(OSError):  # `_note` has reported it
                self._file.flush()

    def close(self) -> None:
        """Write pending events and close the file."""
        if self._writer:
            self._try(lambda writer: writer.close())

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        """Open an event file whose name comes after those of earlier starts.

        TensorBoard reads files in the order of their names, which begin with the time, and a file hides later points of the
        files before it. On a machine whose clock is behind, the name would come first, and the older file hide its points.
        """
        newest = max((_seconds_in(path) for path in self._run_dir.glob("*tfevents*")), default=0.0)
        self._ahead = max(0.0, newest + 1 - time.time())
        if not self._ahead:
            return SummaryWriter(str(self._run_dir), purge_step=purge_step)
        if self._ahead > _QUICK:
            logger.warning(
                "the clock is %.0f s behind the newest event file: times of points are moved by as much", self._ahead
            )
        with _clock_ahead(self._ahead):
            return SummaryWriter(str(self._run_dir), purge_step=purge_step)

    def _try(self, write: Callable[[SummaryWriter], None]) -> None:
        try:
            writer = self._writer or self._reopen()
            if writer:
                write(writer)
        except OSError as error:
            self._give_up(error)

    def _reopen(self) -> SummaryWriter | None:
        if self._rank != 0 or time.monotonic() < self._again:
            return None
        self._again = time.monotonic() + self.patience
        with tempfile.NamedTemporaryFile(dir=self._run_dir, prefix=".probe-") as probe:  # raises if the disk is still full
            probe.write(bytes(1 << 16))
        self._writer = self._open()
        logger.info("TensorBoard's event file is writable again")
        return self._writer

    def _give_up(self, error: OSError) -> None:
        self._again = time.monotonic() + self.patience
        if not self._writer:
            return  # already logged
        with suppress(OSError):
            self._writer.close()
        self._writer = None
        logger.error(
            "TensorBoard's event file in %s cannot be written (%s): training continues, and points are lost until it can",
            self._run_dir,
            error.strerror or error,
        )


def _seconds_in(path: Path) -> float:
    """The time in the name of an event file, `events.out.tfevents.SECONDS.HOST...`; 0 if there is none."""
    seconds = path.name.partition("tfevents.")[2].partition(".")[0]
    return float(seconds) if seconds.isdigit() else 0.0


@contextmanager
def _clock_ahead(seconds: float) -> Iterator[None]:
    """TensorBoard's writer takes the time in a file's name from its module `time`; inside the block it is ahead."""
    before = event_file_writer.time
    event_file_writer.time = SimpleNamespace(time=lambda: time.time() + seconds)
    try:
        yield
    finally:
        event_file_writer.time = before
