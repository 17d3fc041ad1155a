"""Limits of control groups, versions 1 and 2, read from made-up files."""

import os
from pathlib import Path

import pytest

from ijepa_ds import machine

CORES, MEMORY = len(os.sched_getaffinity(0)), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_limits_it_is_the_whole_machine(tmp_path: Path) -> None:
    assert (machine.cores(tmp_path), machine.memory_bytes(tmp_path)) == (CORES, MEMORY)
    files = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "max 100000\n", "sys/fs/cgroup/a/memory.max": "max\n"}
    assert (machine.cores(write(tmp_path, files)), machine.memory_bytes(tmp_path)) == (CORES, MEMORY)


@pytest.mark.parametrize("path", ["a/b", "a", ""])
def test_the_smallest_limit_on_the_way_up_counts(path: str, tmp_path: Path) -> None:
    """Without a path, the folder is not visible, as in a container: only its own top is."""
    files = {"proc/self/cgroup": "0::/a/b\n", f"sys/fs/cgroup/{path}/cpu.max": "150000 100000\n"}
    files[f"sys/fs/cgroup/{path}/memory.max"] = "1000000\n"
    assert (machine.cores(write(tmp_path, files)), machine.memory_bytes(tmp_path)) == (1, 1_000_000)


def test_version_1(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "9:memory:/job\n3:cpu,cpuacct:/\n", "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4096\n"}
    files["sys/fs/cgroup/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
    files |= {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    assert (machine.cores(write(tmp_path, files)), machine.memory_bytes(tmp_path)) == (1, 4096)
    (tmp_path / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert machine.cores(tmp_path) == CORES
