"""One supervised command: started, watched, asked to stop, and brought to its end with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from ijepa_ds.cluster import processes
from ijepa_ds.cluster.processes import Process

REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)  # as `stop.StopRequests`
_PATIENCE = 2.0  # seconds after which another Ctrl-C means "now"
_SAVING = 1800.0  # seconds that ranks may take to save once they were asked to
_LEAVING = 30.0  # seconds that what does not save may take to end by itself, and again after SIGTERM


class Inbox:
    """The signals of this process, taken one at a time where it wants them; nothing is interrupted and none is lost."""

    def __init__(self) -> None:
        """From now on they wait."""
        # nohup ignores SIGHUP, a script's background SIGINT: so do we, and what we start
        self.requests = {number for number in REQUESTS if signal.getsignal(number) != signal.SIG_IGN}
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {*self.requests, signal.SIGCHLD})

    def wait(self, seconds: float) -> int:
        """The next request to stop; 0 when none came in time, or a child has ended."""
        got = signal.sigtimedwait({*self.requests, signal.SIGCHLD}, max(0.0, seconds))
        return got.si_signo if got and got.si_signo != signal.SIGCHLD else 0

    def release(self) -> None:
        """In a child: take signals as before."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class Supervised:
    """A command in a session of its own, so that a terminal's Ctrl-C reaches the supervisor alone."""

    def __init__(self, command: Sequence[str], inbox: Inbox, on_request: Callable[[int], None]) -> None:
        """Start it.

        Args:
            command: the program and its arguments.
            inbox: where requests to stop arrive.
            on_request: takes the first one, before it is passed on.

        Raises:
            OSError: there is no such program.
        """
        parent = os.getpid()

        def prepare() -> None:
            inbox.release()
            processes.end_with_parent(signal.SIGTERM)
            if os.getppid() != parent:  # it ended before the line above
                os._exit(1)

        self._inbox, self._on_request = inbox, on_request
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {processes.SUPERVISOR: processes.supervisor_mark()},
            preexec_fn=prepare,
        )
        self.code: int | None = None  # the command's exit code; -N after signal N
        self.request, self._asked = 0, 0.0  # the signal that asked for a stop, and when
        self._told: set[Process] = set()  # ranks that were asked to save and stop
        self._quiet = self._terminated = self._since = 0.0

    def run(self) -> int:
        """Wait until the command and everything below it has ended; its exit code."""
        while True:
            self._ask(self._inbox.wait(0.5 if self._ending() else 5.0))
            self._reap()
            if self._ending():
                left = processes.descendants()
                if self.code is not None and not left:
                    return self.code
                self._end(left)

    @property
    def trained(self) -> bool:
        """Whether there was a rank that had something to save when a stop was asked for."""
        return bool(self._told)

    def _ending(self) -> bool:
        return bool(self.request) or self.code is not None

    def _reap(self) -> None:
        """Children, and orphans that became ours: all, so that none stays as a zombie."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._child.pid:
                self.code = self._child.returncode = os.waitstatus_to_exitcode(status)

    def _ask(self, number: int) -> None:
        """A stop was asked for; a second Ctrl-C does not wait for a save."""
        if not number:
            return
        now = time.monotonic()
        if not self.request:
            self.request, self._asked = number, now
            self._on_request(number)
        elif number == signal.SIGINT and now - self._asked > _PATIENCE:
            say("interrupted again: ending the run without saving")
            self._kill(processes.descendants())

    def _end(self, left: list[Process]) -> None:
        """Ranks that train (they take SIGUSR1) are asked once and may save; the rest gets time, SIGTERM, then SIGKILL."""
        now = time.monotonic()
        self._since = self._since or now
        ranks = [process for process in left if process.takes(signal.SIGUSR1)]
        for process in ranks:
            if process not in self._told:
                self._told.add(process)
                _send(process, self.request if self.request and process.takes(self.request) else signal.SIGTERM)
        if ranks and now - self._since < _SAVING:
            self._quiet = self._terminated = 0.0
            return
        self._quiet = self._quiet or now
        # After a request, what saved is on its way out. Without one, ranks that start see for themselves who is gone.
        patience = 0.0 if self.request and not self._told else _LEAVING
        if not self._terminated and now - self._quiet >= patience:
            self._terminated = now
            for process in left:
                _send(process, signal.SIGTERM)
        elif self._terminated and now - self._terminated > _LEAVING + 10:  # DeepSpeed's launcher takes 30 s itself
            say(f"killing what did not end: {', '.join(str(process.pid) for process in left)}")
            self._kill(left)

    def _kill(self, victims: list[Process]) -> None:
        for process in victims:
            _send(process, signal.SIGKILL)


def say(text: str) -> None:
    """A line of the supervisor's, on stderr."""
    print(f"ijepa_ds supervise: {text}", file=sys.stderr, flush=True)


def _send(process: Process, number: int) -> None:
    if process.state() != "X":
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            pass
