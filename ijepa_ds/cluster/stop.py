"""Being asked to stop: SIGTERM and SIGUSR1 (a queue that preempts), SIGINT (Ctrl-C), SIGHUP (terminal or launcher gone)."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_PATIENCE = 2.0  # seconds after which another Ctrl-C means "now"; a launcher sends a second signal within them


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop and has saved its state; the text says by what and where."""


class StopRequests:
    """While it is entered, a signal is noted instead of ending the process; a later second Ctrl-C ends it at once."""

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = 0  # number of the first signal; 0: none
        self._since = 0.0

    def __enter__(self) -> StopRequests:
        """Take the signals over."""
        heeded = [number for number in self.signals if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back; a process that was asked to stop goes on ignoring them, because it is on its way out."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.received else handler)

    def request(self, number: int) -> None:
        """As if the signal had come; from any thread."""
        self.received = self.received or int(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received and time.monotonic() - self._since > _PATIENCE:
            os.write(2, b"\nijepa_ds: interrupted again: leaving without saving\n")
            os._exit(128 + number)
        if not self.received:
            self.received, self._since = number, time.monotonic()
