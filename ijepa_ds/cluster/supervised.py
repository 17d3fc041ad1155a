"""One supervised command: start it, pass requests to stop on, and end it with all its descendants."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path

from ijepa_ds import terminal
from ijepa_ds.cluster import processes
from ijepa_ds.cluster.processes import Process
from ijepa_ds.exits import FAILED, environment_for_notes, first_noted

REQUESTS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)  # as `stop.StopRequests`
_PATIENCE = 2.0  # seconds after which another Ctrl-C means "now"
SAVING = 1800.0  # seconds that ranks may take to save after they were asked to stop
LEAVING = 30.0  # seconds that other processes may take to end by themselves
TERMINATING = LEAVING + 10  # seconds after SIGTERM; DeepSpeed's launcher itself takes 30


class Inbox:
    """The signals of this process, blocked and taken one at a time: they interrupt nothing and none is lost."""

    def __init__(self) -> None:
        """Block the signals."""
        # nohup ignores SIGHUP, a script's background jobs ignore SIGINT: so does this process, and what it starts
        self.requests = {number for number in REQUESTS if signal.getsignal(number) != signal.SIG_IGN}
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, {*self.requests, signal.SIGCHLD})

    def wait(self, seconds: float) -> int:
        """The next request to stop; 0 when none came in time, or a child has ended."""
        got = signal.sigtimedwait({*self.requests, signal.SIGCHLD}, max(0.0, seconds))
        return got.si_signo if got and got.si_signo != signal.SIGCHLD else 0

    def release(self) -> None:
        """In a child: restore the mask from before."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class Phase(Enum):
    """Of an `Ending`."""

    ASKED = auto()  # ranks that train were asked to stop and may save; at most SAVING seconds from the beginning
    QUIET = auto()  # no rank saves; the rest may end by itself
    TERMINATED = auto()  # the rest got SIGTERM; TERMINATING seconds later it gets SIGKILL


class Ending:
    """When to send which signal to the processes of a command that is to end. Pure: it is given the time."""

    def __init__(self, now: float) -> None:
        """Begin to end; times are in seconds."""
        self._began = self._since = now  # `_since`: of the phase
        self.phase = Phase.ASKED

    def signal(self, now: float, saving: bool, patience: float) -> int:
        """The signal that all processes get now: SIGTERM, SIGKILL, or 0 for none.

        Args:
            now: the time.
            saving: whether there are ranks that train; once they are gone, or have had their time, QUIET begins.
            patience: seconds that QUIET lasts.
        """
        if saving and now - self._began < SAVING:
            self.phase = Phase.ASKED
        elif self.phase is Phase.ASKED:
            self.phase, self._since = Phase.QUIET, now
        if self.phase is Phase.QUIET and now - self._since >= patience:
            self.phase, self._since = Phase.TERMINATED, now
            return signal.SIGTERM
        late = self.phase is Phase.TERMINATED and now - self._since > TERMINATING
        return signal.SIGKILL if late else 0


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
        self._noted = tempfile.TemporaryDirectory(prefix="ijepa_ds-supervise-")
        self._notes = Path(self._noted.name, "exit-codes")
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {processes.SUPERVISOR: processes.supervisor_mark()} | environment_for_notes(self._notes),
            preexec_fn=prepare,
        )
        self.code: int | None = None  # the command's exit code; -N after signal N
        self.request, self._asked = 0, 0.0  # the signal that asked for a stop, and when
        self._informed: set[Process] = set()  # ranks that were asked to save and stop
        self._ending: Ending | None = None

    def run(self) -> int:
        """Wait until the command and everything below it has ended.

        Returns:
            Its exit code; if that is 1, which torchrun has for any failure, the one that the first rank of this host noted.
        """
        with self._noted:
            while (code := self._look()) is None:
                pass
            return (first_noted(self._notes) or FAILED) if code == FAILED else code

    def _look(self) -> int | None:
        """Wait for a signal or some seconds, and do what is due; the command's exit code once all processes are gone."""
        self._ask(self._inbox.wait(0.5 if self._is_ending else 5.0))
        self._reap()
        left = processes.descendants() if self._is_ending else []
        if self.code is not None and not left:
            return self.code
        if self._is_ending:
            self._end(left)
        return None

    @property
    def trained(self) -> bool:
        """Whether a rank was training when the command was to end."""
        return bool(self._informed)

    @property
    def _is_ending(self) -> bool:
        return bool(self.request) or self.code is not None

    def _reap(self) -> None:
        """Collect all children that have ended, adopted orphans included, so that none stays a zombie."""
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
        """Handle a request to stop; a second Ctrl-C does not wait for a save."""
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
        """Ask ranks that train (they handle SIGUSR1) to save and stop, once each; end the other processes in time."""
        now = time.monotonic()
        self._ending = self._ending or Ending(now)
        ranks = [process for process in left if process.takes(signal.SIGUSR1)]
        for process in ranks:
            if process not in self._informed:
                self._informed.add(process)
                _send(process, self.request if self.request and process.takes(self.request) else signal.SIGTERM)
        # After a request, ranks that have saved are about to end. Without one, ranks that start notice the dead launcher.
        patience = 0.0 if self.request and not self._informed else LEAVING
        number = self._ending.signal(now, bool(ranks), patience)
        if number == signal.SIGKILL:
            say(f"killing what did not end: {', '.join(str(process.pid) for process in left)}")
        for process in left if number else ():
            _send(process, number)

    def _kill(self, victims: list[Process]) -> None:
        for process in victims:
            _send(process, signal.SIGKILL)


def say(text: str) -> None:
    """Print a message of the supervisor on stderr."""
    terminal.line(f"ijepa_ds supervise: {text}", err=True)


def _send(process: Process, number: int) -> None:
    if process.state() != "X":
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            pass
