"""`ijepa-ds supervise [options] -- deepspeed ... --module ijepa_ds.train ...`: restart training after a failure.

It imports neither torch nor NumPy, and holds no lock or file that training needs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ijepa_ds.arguments import below
from ijepa_ds.checkpoint.folder import newest_whole
from ijepa_ds.cluster import processes
from ijepa_ds.cluster.launcher import has_gpu, launcher_problems
from ijepa_ds.cluster.supervised import Inbox, Supervised, say
from ijepa_ds.config import published
from ijepa_ds.durable import append_lines
from ijepa_ds.errors import UserError
from ijepa_ds.examples import shipped
from ijepa_ds.exits import COMPLETED, FAILED, LOST, REQUESTED, STOPPED, USER_ERROR

LOG = "restarts.jsonl"  # in the run directory
_TRAINER = "ijepa_ds.train"
_BY_HAND = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # a process that one of these ended was asked to stop
_MEANINGS = {
    0: "although the last step is not reached (DeepSpeed's launcher was killed?)",
    FAILED: "an unexpected error",
    LOST: "a rank died or hangs",
    STOPPED: "storage or network failed",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("--run", type=Path, help="the run directory (default: run.dir of the command's configuration)")
    parser.add_argument(
        "--restarts", type=int, default=100, help="give up after this number of restarts (default: %(default)s)"
    )
    parser.add_argument(
        "--fruitless",
        type=int,
        default=3,
        help="give up after this number of attempts in a row without a newer checkpoint (default: %(default)s)",
    )
    parser.add_argument(
        "--backoff",
        type=float,
        default=10.0,
        help="seconds before a restart, doubled after every further attempt without a checkpoint (default: %(default)s)",
    )
    parser.add_argument("--max-backoff", type=float, default=600.0, help="at most (default: %(default)s s)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command that starts the run")


def run(args: argparse.Namespace) -> int:
    """Run the verb; the exit codes are in `docs/checkpoints.md`.

    Raises:
        ValueError: lists all problems of the command line.
    """
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    wrong = below(args, restarts=0, fruitless=1, backoff=0, max_backoff=0)
    if not command:
        wrong.append("the command is missing: ijepa-ds supervise -- deepspeed ... --module ijepa_ds.train ...")
    wrong += launcher_problems(command, os.environ, has_gpu())
    if wrong:
        raise UserError("\n".join(wrong))
    where = run_dir(command)
    folder = args.run or where
    if folder is None:
        raise UserError(f"no '{_TRAINER} --config FILE' in the command: name the run directory with --run")
    return Supervisor(command, folder, args).run()


def run_dir(command: Sequence[str]) -> Path | None:
    """The run directory of the trainer in a command; None if the command does not show a trainer.

    Raises:
        ValueError: its configuration is wrong, or does not allow a second start.
    """
    if _TRAINER not in command:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=shipped)
    parser.add_argument("--deepspeed_config")
    words = list(command[command.index(_TRAINER) + 1 :])
    try:
        known, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from error
    if known.config is None:
        return None
    section = published.peek_run(known.config, [word for word in rest if not word.startswith("-")])
    if section.resume != "auto":
        raise UserError(f"run.resume is {section.resume}: a run that is started again needs run.resume=auto")
    return Path(section.dir)


class Supervisor:
    """Starts a command again until its run is complete, a stop is requested, or the limits of restarts are reached."""

    def __init__(self, command: Sequence[str], run_dir: Path, limits: argparse.Namespace) -> None:
        self._command, self._run_dir, self._limits = command, run_dir, limits
        self._restarts = self._fruitless = 0
        self._reached = self._step_when_asked = newest_whole(self._run_dir)
        self._old_marker, self._old_stop = self._marker(COMPLETED), self._marker(REQUESTED)
        self._inbox = Inbox()

    def run(self) -> int:
        """The exit code: 0, 2, 70 or 75."""
        processes.adopt_orphans()
        try:
            return self._run()
        finally:
            self._inbox.release()

    def _run(self) -> int:
        while True:
            try:
                attempt = Supervised(self._command, self._inbox, self._on_request)
            except OSError as error:
                raise UserError(f"cannot start {self._command[0]}: {error.strerror}") from error
            code = attempt.run()
            verdict = self._verdict(code, attempt)
            if verdict is None:
                verdict = self._before_restart(_reason(code))
            if verdict is not None:
                return verdict

    def _verdict(self, code: int, attempt: Supervised) -> int | None:
        """The supervisor's exit code; None: the command failed and may be restarted."""
        if code == USER_ERROR:
            say("not started again: correct what the message above names (exit code 2)")
            return USER_ERROR
        marker = self._marker(COMPLETED)
        if marker and marker != self._old_marker:  # a run that has nothing left to do gives it a new time
            say(f"{self._run_dir} is complete after {self._restarts} restarts")
            return 0
        if attempt.request:
            return self._stopped(code, attempt)
        stop, self._old_stop = self._old_stop, self._marker(REQUESTED)
        if (code == STOPPED and self._old_stop not in (None, stop)) or _killer(code) in _BY_HAND:
            say(f"not started again: it was asked to stop (code {code}); the newest checkpoint is {self._newest()}")
            return STOPPED
        return None

    def _on_request(self, number: int) -> None:
        self._step_when_asked = newest_whole(self._run_dir)
        say(f"{signal.Signals(number).name}: asking the run to save and stop")

    def _stopped(self, code: int, attempt: Supervised) -> int:
        name = signal.Signals(attempt.request).name
        if code == STOPPED or not attempt.trained or newest_whole(self._run_dir) > self._step_when_asked:
            say(f"stopped by {name}; the newest checkpoint is {self._newest()}; the same command continues")
            return STOPPED
        say(f"stopped by {name}, but it ended with code {code}: perhaps not saved; newest checkpoint: {self._newest()}")
        return LOST

    def _before_restart(self, reason: str) -> int | None:
        """Count the failure, log it and wait; an exit code if there is no restart."""
        step, limits = newest_whole(self._run_dir), self._limits
        self._fruitless = 0 if step > self._reached else self._fruitless + 1
        self._reached = max(step, self._reached)
        why = ""
        if self._fruitless >= limits.fruitless:
            why = f"{self._fruitless} attempts in a row saved no newer checkpoint (--fruitless)"
        elif self._restarts >= limits.restarts:
            why = f"{self._restarts} restarts were made (--restarts)"
        if why:
            self._note("gave up", f"{reason}; {why}", step, 0.0)
            say(f"GIVING UP: {why}. Last: {reason}. The newest checkpoint is {self._newest()}")
            return LOST
        self._restarts += 1
        wait = min(limits.backoff * 2 ** max(0, self._fruitless - 1), limits.max_backoff)
        self._note("restart", reason, step, wait)
        say(f"restart {self._restarts} of {limits.restarts} in {wait:g} s, from {self._newest()}: {reason}")
        return self._pause(wait)

    def _pause(self, seconds: float) -> int | None:
        end = time.monotonic() + seconds
        while True:
            number = self._inbox.wait(end - time.monotonic())
            if number:
                say(f"stopped by {signal.Signals(number).name} before a restart; the newest checkpoint is {self._newest()}")
                return STOPPED
            if time.monotonic() >= end:
                return None

    def _note(self, event: str, reason: str, step: int, wait: float) -> None:
        """Add a line to the run's `restarts.jsonl`; a full disk does not prevent a restart."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "event": event,
            "restart": self._restarts,
            "step": step,
            "reason": reason,
            "wait_seconds": wait,
        }
        with suppress(OSError):  # `append_lines` logs the reason
            self._run_dir.mkdir(parents=True, exist_ok=True)
        append_lines(self._run_dir / LOG, [json.dumps(line)])

    def _newest(self) -> str:
        step = newest_whole(self._run_dir)
        return f"that of step {step}" if step else "none yet"

    def _marker(self, name: str) -> tuple[int, int] | None:
        """Identity of a marker of the run, to notice a new one; None if there is none."""
        try:
            facts = (self._run_dir / name).stat()
        except OSError:
            return None
        return facts.st_ino, facts.st_mtime_ns


def _reason(code: int) -> str:
    killer = _killer(code)
    if killer:
        return f"{'it' if code < 0 else 'a process of it'} was killed by {killer.name} (code {code})"
    return f"it ended with code {code}" + (f": {_MEANINGS[code]}" if code in _MEANINGS else "")


def _killer(code: int) -> signal.Signals | None:
    """The signal behind an exit code: -N here, 128 + N from a shell, 256 - N from DeepSpeed's launcher."""
    number = -code if code < 0 else 256 - code if code >= 256 - 31 else code - 128
    # 255 is the code of ssh and many others for any failure
    return signal.Signals(number) if number in set(signal.Signals) and code != 255 else None
