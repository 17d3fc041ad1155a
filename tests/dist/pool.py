"""Ranks that stay: worker processes in one process group, started once a test session, that run one job after another."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import itertools
import multiprocessing as mp
import os
import socket
import sys
import traceback
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

from tests.processes import end_with_pytest
from tests.waiting import limit

PRELOAD = "tests.dist.preload"


def forks() -> Any:
    """Processes forked from a server that has imported everything (`preload.py`); one server a test session."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    # The server of Python 3.11 does not get this process's `sys.path`, and passes over what it cannot import.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


def check_preloaded() -> None:
    """Fail in a process whose fork server has imported nothing: it would start many times slower, without a word."""
    if PRELOAD not in sys.modules:
        raise RuntimeError(f"the fork server did not import {PRELOAD}")


_ports = itertools.count(os.getpid() * 97)


def free_port() -> int:
    """A free port below the kernel's ephemeral range, so that no other process is given it before a rank listens."""
    for number in _ports:
        port = 10_000 + number % 10_000  # slurm.sbatch takes 20,000 to 29,999
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))  # on all addresses, as the ranks' store
            return port
    raise AssertionError("unreachable")


def _worker(rank: int, world_size: int, port: int, accelerator: str, pipe: Any) -> None:
    end_with_pytest()
    if accelerator == "cpu":
        check_preloaded()
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR=accelerator,
    )
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            module, function, arguments = pipe.recv()
        except (EOFError, ConnectionError):  # pytest is gone
            break
        try:
            result = getattr(importlib.import_module(module), function)(**arguments)
            pipe.send((True, result))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
        _give_back()


def _give_back() -> None:
    """Hand freed memory to the system: training tells glibc to keep it, and the ranks of all pools live side by side."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


class Pool:
    """`world_size` ranks on this machine."""

    def __init__(self, world_size: int, accelerator: str = "cpu") -> None:
        """Start the processes; they join the process group in their first job. `accelerator`: cpu or cuda."""
        self.world_size, self.accelerator = world_size, accelerator
        self._start()

    def _start(self) -> None:
        # the fork server has chosen the CPU as DeepSpeed's accelerator
        context, port = forks() if self.accelerator == "cpu" else mp.get_context("spawn"), free_port()
        self._pipes, self._processes = [], []
        for rank in range(self.world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_worker, args=(rank, self.world_size, port, self.accelerator, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: str, timeout: float = 600, module: str = "tests.dist.jobs", **arguments: Any) -> list[Any]:
        """Call `module.function(**arguments)` on every rank; the results in rank order.

        Raises:
            AssertionError: with the traceback of the first rank that failed, or the ranks that did not answer.
        """
        for pipe in self._pipes:
            pipe.send((module, function, arguments))
        results, failures, silent = [], [], []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(limit(10 if failures else timeout)):
                silent.append(rank)
                continue
            try:
                good, value = pipe.recv()
            except EOFError:
                good, value = False, "the process is gone: killed, perhaps for memory"
            results.append(value)
            if not good:
                failures.append(f"rank {rank}:\n{value}")
        if failures or silent:
            self.close()
            self._start()  # a failed rank leaves the others somewhere in a collective
            raise AssertionError("\n".join(failures) or f"ranks {silent} did not answer within {limit(timeout):.0f} s")
        return results

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
