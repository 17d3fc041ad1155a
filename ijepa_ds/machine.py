"""What this process may use of its machine, as affinity, control groups (containers, SLURM) and sessions limit it."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

_NO_LIMIT = 1 << 60  # version 1 writes a huge number where there is no limit
_SMALL_SHARED = 64 << 20  # bytes of /dev/shm, what a container has by default
_SMALL_LOCK = 1 << 30  # bytes of memory that RDMA may lock


class Limit(NamedTuple):
    """A limit that is too small for training: its name, what was found, and what to do."""

    name: str
    found: str
    advice: str


def cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: the smaller of its affinity and the CPU quota of its control groups, at least 1.

    Args:
        root: of /proc and /sys.
    """
    quotas = [len(os.sched_getaffinity(0))]
    for folder in _groups(root, "cpu"):
        words = _words(folder / "cpu.max") or [*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")]
        if len(words) == 2 and words[0].isdigit() and int(words[1]):  # "max", and -1 in version 1: no quota
            quotas.append(int(words[0]) // int(words[1]))
    return max(1, min(quotas))


def memory_bytes(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may use: the machine's, or the smallest limit of its control groups."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in _groups(root, "memory"):
        for word in _words(folder / "memory.max") + _words(folder / "memory.limit_in_bytes"):
            if word.isdigit() and int(word) < _NO_LIMIT:
                limits.append(int(word))
    return min(limits)


def shared_memory_bytes() -> int:
    """The size of /dev/shm."""
    return shutil.disk_usage("/dev/shm").total


def locked_memory(root: Path = Path("/")) -> dict[str, int | bool]:
    """`limit`: bytes of memory that may be locked (-1: no limit); `rdma`: whether there are devices that lock memory."""
    devices = root / "sys/class/infiniband"
    return {"limit": resource.getrlimit(resource.RLIMIT_MEMLOCK)[0], "rdma": devices.is_dir() and any(devices.iterdir())}


def small_limits(shared: int | None, locked: Mapping[str, int | bool], ranks: int) -> Iterator[Limit]:
    """Yield the limits of containers and sessions that are too small for `ranks` ranks with GPUs.

    Args:
        shared: `shared_memory_bytes()`; None: not known.
        locked: `locked_memory()`; empty: not known.
        ranks: of this machine.
    """
    if shared is not None and ranks > 1 and shared <= _SMALL_SHARED:
        advice = "NCCL's ranks of a host exchange data there: docker run --shm-size=1g, or --ipc=host"
        yield Limit("shared memory", f"/dev/shm has {shared / 2**20:,.0f} MiB for {ranks} ranks", advice)
    if locked.get("rdma") and 0 <= locked.get("limit", -1) < _SMALL_LOCK:
        text = f"limit {locked['limit'] / 2**20:,.2f} MiB (ulimit -l), and there are RDMA devices"
        advice = "raise it: limits.conf, LimitMEMLOCK=infinity of slurmd or sshd, docker run --ulimit memlock=-1"
        yield Limit("locked memory", text, advice)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, of versions 2 and 1.

    In a container the path in /proc/self/cgroup may be the host's, while /sys/fs/cgroup shows the container's own groups.
    """
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            top = root / "sys/fs/cgroup"
        elif controller in names.split(","):
            top = root / "sys/fs/cgroup" / controller
        else:
            continue
        folder = top / path.lstrip("/")
        while folder != top and top in folder.parents:
            yield folder
            folder = folder.parent
        yield top


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:  # no such controller, or not readable
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
