"""Faults of storage, as opposed to faults of single files: which errors they are, and waiting for their end.

A file server that restarts, a full table of open files or a lost mount makes calls fail for seconds or minutes. Such an
error says nothing about the file. Whoever reads therefore waits, tries again, and gives up after a time limit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ijepa_ds.errors import StorageError, is_fault

logger = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = 600.0  # seconds; the default of data.storage_timeout
_PAUSES = (0.1, 30.0)  # seconds: the first pause, and the longest; each is twice the one before
_QUIET = 15.0  # seconds between messages


class Storage:
    """Repeats calls while the storage fails. Threads may share one."""

    def __init__(self, timeout: float = TIMEOUT, beat: Callable[[], None] = lambda: None) -> None:
        """Prepare.

        Args:
            timeout: seconds for which one call is repeated; 0: it is made once.
            beat: called at every repetition, from the thread that waits: waiting for storage is not hanging.
        """
        self.timeout, self._beat = timeout, beat
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._waiting = 0
        self._said: float | None = None  # when the last message was logged; None: no fault is known
        self._since = 0.0
        self._calls: dict[int, tuple[float, str]] = {}  # thread -> when its call began, and what it reads

    @property
    def waiting(self) -> bool:
        """Whether a thread waits for the storage."""
        return self._waiting > 0

    def slowest(self) -> tuple[float, str]:
        """The call that has not returned for the longest time: seconds, and what it reads; 0 and "" if there is none."""
        began, what = min(self._calls.copy().values(), default=(time.monotonic(), ""))
        return time.monotonic() - began, what

    def close(self) -> None:
        """End all waiting with a StorageError."""
        self._closed.set()

    def call(
        self,
        work: Callable[[], T],
        what: str,
        *,
        fault: Callable[[OSError], bool] = is_fault,
        reopen: Callable[[], None] | None = None,
    ) -> T:
        """Call `work`, and repeat it with growing pauses while the storage fails.

        Args:
            work: reads something; it must be repeatable.
            what: the name of what it reads, for messages.
            fault: which errors are faults of the storage.
            reopen: called before a repetition, to close descriptors that a server may have forgotten (ESTALE).

        Raises:
            StorageError: the storage failed for longer than the time limit.
            OSError: any other error of `work`, at once.
        """
        began, pause = time.monotonic(), _PAUSES[0]
        while True:
            self._calls[threading.get_ident()] = time.monotonic(), what
            try:
                result = work()
            except OSError as error:
                if not fault(error):
                    raise
                self._wait(error, what, began, pause)
                pause = min(2 * pause, _PAUSES[1])
                if reopen:
                    reopen()
            else:
                self._answered()
                return result
            finally:
                self._calls.pop(threading.get_ident(), None)

    def _wait(self, error: OSError, what: str, began: float, pause: float) -> None:
        now, reason = time.monotonic(), error.strerror or str(error)
        left = began + self.timeout - now
        if left <= 0:
            raise StorageError(
                f"{what}: {reason} for {now - began:.0f} s (data.storage_timeout: {self.timeout:g}). This is a fault of the "
                "storage, not of the file: check the mount and the file server of this host, then run the same command again"
            ) from error
        with self._lock:
            if self._said is None:
                self._since = began
            if self._said is None or now - self._said > _QUIET:
                self._said = now
                logger.warning("storage does not answer: %s: %s; trying again for %.0f s at most", what, reason, left)
            self._waiting += 1
        self._beat()
        try:
            if self._closed.wait(min(pause, left)):
                raise StorageError(f"{what}: {reason}; given up, because the run ends") from error
        finally:
            with self._lock:
                self._waiting -= 1

    def _answered(self) -> None:
        if self._said is None:
            return
        with self._lock:
            if self._said is not None and not self._waiting:
                logger.warning("storage answers again after %.1f s", time.monotonic() - self._since)
                self._said = None
