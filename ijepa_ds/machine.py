"""What this process may use of its machine: cores and memory, as affinity and control groups (containers, SLURM) limit them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 writes a huge number where there is no limit


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
