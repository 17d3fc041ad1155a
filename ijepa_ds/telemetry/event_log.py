"""TensorBoard's event file. A disk that refuses it costs points, not the run."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)


class Log:
    """TensorBoard on rank 0, nothing elsewhere."""

    patience = 60.0  # seconds between tries to write again

    def __init__(self, run_dir: Path, rank: int, purge_step: int) -> None:
        """Open the event file.

        Args:
            run_dir: where events go: `tensorboard --logdir RUN`.
            rank: only rank 0 writes.
            purge_step: points at or after this step, from before a resume, are hidden.

        Raises:
            ValueError: the file cannot be written.
        """
        self._run_dir, self._rank, self._again = run_dir, rank, 0.0
        self._writer: SummaryWriter | None = None
        if rank == 0:
            try:
                self._writer = SummaryWriter(str(run_dir), purge_step=purge_step)
            except OSError as error:
                raise ValueError(
                    f"run.dir: TensorBoard's event file in {run_dir} cannot be written ({error.strerror or error}): choose "
                    "another, or mend it"
                ) from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Points at `step` (optimizer steps done)."""

        def write(writer: SummaryWriter) -> None:
            for tag, value in values.items():
                writer.add_scalar(tag, value, step)

        self._try(write)

    def text(self, tag: str, text: str, step: int | None = None) -> None:
        """A preformatted text."""
        self._try(lambda writer: writer.add_text(tag, "    " + text.replace("\n", "\n    "), step))

    def layout(self, layout: dict[str, dict[str, list[object]]]) -> None:
        """What TensorBoard's "Custom Scalars" shows (`dashboard.LAYOUT`)."""
        self._try(lambda writer: writer.add_custom_scalars(layout))

    def image(self, step: int, tag: str, picture: Tensor) -> None:
        """A picture, uint8 `[H, W, 3]`."""
        self._try(lambda writer: writer.add_image(tag, picture, step, dataformats="HWC"))

    def flush(self) -> None:
        """Write what is pending."""
        self._try(lambda writer: writer.flush())

    def close(self) -> None:
        """Write what is pending."""
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
        with tempfile.NamedTemporaryFile(dir=self._run_dir, prefix=".probe-") as probe:  # is there room?
            probe.write(bytes(1 << 16))
        self._writer = SummaryWriter(str(self._run_dir))
        logger.info("TensorBoard's events are written again")
        return self._writer

    def _give_up(self, error: OSError) -> None:
        self._again = time.monotonic() + self.patience
        if not self._writer:
            return  # still no better
        with suppress(OSError):
            self._writer.close()
        self._writer = None
        logger.error(
            "TensorBoard's event file in %s cannot be written (%s): training goes on; until it can, points are lost",
            self._run_dir,
            error.strerror or error,
        )
