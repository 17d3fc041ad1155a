"""Processes of this host, read from Linux's /proc: which are alive, their parents, the signals they handle."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "deepspeed.launcher.runner", "torchrun", "torch.distributed.run"}
SUPERVISOR = "IJEPA_DS_SUPERVISOR"  # environment variable: the process whose end asks this one to stop
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Process:
    """A process of this host; its start time distinguishes it from a later process with the same PID."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that has this PID now; None if there is none."""
        fields = _stat(pid)
        return cls(pid, int(fields[19])) if fields else None

    def state(self) -> str:
        """Linux's state letter: R running, S sleeping, T stopped, ...; X if it has ended."""
        fields = _stat(self.pid)
        gone = not fields or int(fields[19]) != self.started or fields[0] in "ZX"
        return "X" if gone else fields[0]

    def parent(self) -> int:
        """PID of its parent; 0 if it has ended."""
        fields = _stat(self.pid)
        return int(fields[1]) if fields else 0

    def words(self) -> list[str]:
        """Its command line; empty if it has ended."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return []

    def folder(self) -> Path:
        """Its current directory; this process's own if that cannot be read."""
        try:
            return Path(os.readlink(f"/proc/{self.pid}/cwd"))
        except OSError:
            return Path.cwd()

    def takes(self, number: int) -> bool:
        """Whether it has a handler for signal `number`."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (number - 1) & 1)


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def descendants() -> list[Process]:
    """Living children of this process, their children, and so on."""
    children = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields and fields[0] not in "ZX":
            children[int(fields[1])].append(Process(int(entry.name), int(fields[19])))
    found, parents = [], [os.getpid()]
    while parents:
        below = children.pop(parents.pop(), [])
        found += below
        parents += [process.pid for process in below]
    return found


def adopt_orphans() -> None:
    """From now on, orphans among the descendants become children of this process instead of the host's init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(number: int) -> None:
    """Have the kernel send this process signal `number` when its parent ends, for whatever reason."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def supervisor_mark() -> str:
    """The value of `SUPERVISOR` for processes that this one starts."""
    me = Process.of(os.getpid())
    assert me is not None
    return f"{me.pid} {me.started} {place()}"


def supervisor() -> Process | None:
    """The process that `SUPERVISOR` names, even if it has ended; None if unset, or from another host or PID namespace."""
    pid, started, where = [*os.environ.get(SUPERVISOR, "").split(" ", 2), "", "", ""][:3]
    return Process(int(pid), int(started)) if where == place() else None


def place() -> str:
    """Where a PID is valid: boot of a host and PID namespace (containers have their own)."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def parents() -> list[Process]:
    """The parent of this process, its parent, and so on, without the first process of the host."""
    found: list[Process] = []
    pid = os.getppid()
    while pid > 1 and (process := Process.of(pid)):
        found.append(process)
        pid = process.parent()
    return found


def launchers() -> list[Process]:
    """The launchers that started this process, nearest first (`deepspeed` is two processes), and the supervisor, if any."""
    found: list[Process] = []
    for process in parents():
        words = process.words()[:5]
        if not _LAUNCHERS & {*words, *map(os.path.basename, words)}:
            break
        found.append(process)
    above = supervisor()
    return [*found, above] if above else found
