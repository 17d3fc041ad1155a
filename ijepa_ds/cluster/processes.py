"""Processes of this host, as Linux's /proc tells them: which live, who started them, which signals they take."""

from __future__ import annotations

import ctypes
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

_LAUNCHERS = {"deepspeed", "deepspeed.launcher.launch", "deepspeed.launcher.runner", "torchrun", "torch.distributed.run"}
SUPERVISOR = "IJEPA_DS_SUPERVISOR"  # environment variable: the process whose end is a request to stop
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Process:
    """A process of this host; `started` tells it from a later one of the same number."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that now has this number."""
        fields = _stat(pid)
        return cls(pid, int(fields[19])) if fields else None

    def state(self) -> str:
        """Linux's letter: R running, S sleeping, T stopped, ...; X when it has ended."""
        fields = _stat(self.pid)
        gone = not fields or int(fields[19]) != self.started or fields[0] in "ZX"
        return "X" if gone else fields[0]

    def parent(self) -> int:
        """Number of the process above it; 0 when it has ended."""
        fields = _stat(self.pid)
        return int(fields[1]) if fields else 0

    def takes(self, number: int) -> bool:
        """Whether it has a handler for a signal."""
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
    """Living processes that this one started, or that those started."""
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
    """From now on, what a descendant leaves behind becomes a child of this process and not of the host's first one."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent(number: int) -> None:
    """Ask the kernel to send this process a signal when the one that started it has ended, by whatever."""
    _prctl(_PR_SET_PDEATHSIG, number)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def supervisor_mark() -> str:
    """This process, as the value of `SUPERVISOR` for what it starts."""
    me = Process.of(os.getpid())
    assert me is not None
    return f"{me.pid} {me.started} {_place()}"


def supervisor() -> Process | None:
    """The process that `SUPERVISOR` names, even when it has ended; None when there is none, or not in this place."""
    pid, started, place = [*os.environ.get(SUPERVISOR, "").split(" ", 2), "", "", ""][:3]
    return Process(int(pid), int(started)) if place == _place() else None


def _place() -> str:
    """Where a process number means the same: a start of a host, and a space of numbers (containers have their own)."""
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def launchers() -> list[Process]:
    """The launchers that started this process, nearest first (`deepspeed` is two processes), and the supervisor, if any."""
    found: list[Process] = []
    pid = os.getppid()
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:5]
        except OSError:
            break
        process = Process.of(pid)
        if not _LAUNCHERS & {*words, *map(os.path.basename, words)} or not process:
            break
        found.append(process)
        pid = process.parent()
    above = supervisor()
    return [*found, above] if above else found
