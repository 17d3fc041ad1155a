"""The writer of TensorBoard's event file; write errors lose points but do not stop the run."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)


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
        if rank == 0:
            try:
                self._writer = SummaryWriter(str(run_dir), purge_step=purge_step)
            except OSError as error:
                raise UserError(
                    f"run.dir: TensorBoard's event file in {run_dir} cannot be written ({error.strerror or error}): choose "
                    "another directory, or make it writable"
                ) from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write scalars by tag at `step` (completed optimizer steps)."""

        def write(writer: SummaryWriter) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        self._try(write)

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

    def close(self) -> None:
        """Write pending events and close the file."""
        if self._writer:
            self._try(lambda writer: writer.close())

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
        self._writer = SummaryWriter(str(self._run_dir))
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
