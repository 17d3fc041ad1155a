"""Requests to stop: SIGTERM and SIGUSR1 (preemption), SIGINT (Ctrl-C), SIGHUP (terminal or launcher has ended)."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

_PATIENCE = 2.0  # seconds after which another Ctrl-C ends the process at once; launchers send a second signal within them


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop and has saved its state; the text names the signal and the step."""


class StopRequests:
    """Context in which a signal is recorded instead of ending the process; a second Ctrl-C later ends it at once."""

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = 0  # the first signal; 0: none
        self._since = 0.0

    def __enter__(self) -> StopRequests:
        """Install the handlers."""
        heeded = [number for number in self.signals if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the old handlers; after a request to stop, ignore further signals, because the process is about to end."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_IGN if self.received else handler)

    def request(self, number: int) -> None:
        """Act as if the signal had been received; from any thread."""
        self.received = self.received or int(number)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received and time.monotonic() - self._since > _PATIENCE:
            os.write(2, b"\nijepa_ds: interrupted again: leaving without saving\n")
            os._exit(128 + number)
        if not self.received:
            self.received, self._since = number, time.monotonic()
