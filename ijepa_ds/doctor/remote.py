"""Runs a module on all hosts at the same time, through ssh or locally."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ijepa_ds.cluster.hosts import Host
from ijepa_ds.doctor.probe import MARK
from ijepa_ds.errors import UserError

_TRAVELS = ("PYTHON", "NCCL", "UCX")  # prefixes of variables that DeepSpeed's launcher exports to all hosts


@dataclass(frozen=True)
class Answer:
    """Answer of a host.

    Attributes:
        found: content of the answer; None without an answer.
        error: reason for a missing answer.
        sent: this machine's clock at the request, seconds.
        received: this machine's clock at the answer.
    """

    found: dict[str, Any] | None
    error: str
    sent: float
    received: float


def allocated_hosts(environment: Mapping[str, str]) -> list[Host]:
    """The nodes and tasks of the SLURM allocation that this process is in.

    Raises:
        UserError: it is in none, or its tasks differ between nodes.
    """
    nodes, tasks = environment.get("SLURM_JOB_NODELIST"), environment.get("SLURM_TASKS_PER_NODE", "1")
    if not nodes:
        raise UserError("--srun: not inside a SLURM allocation (no SLURM_JOB_NODELIST): use it in salloc or in a batch script")
    each = re.fullmatch(r"(\d+)(\(x\d+\))?", tasks)
    if not each:
        raise UserError(
            f"--srun: SLURM_TASKS_PER_NODE is {tasks}: every node needs the same number of tasks (--ntasks-per-node)"
        )
    done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.split():
        raise UserError(f"--srun: scontrol show hostnames {nodes}: {(done.stderr or done.stdout).strip()}")
    return [Host(name, int(each[1])) for name in done.stdout.split()]


def ask(
    host: str | None, module: str, request: dict[str, Any], environment: Mapping[str, str], timeout: float, through: str = "ssh"
) -> Answer:
    """Run `python -m module` on a host (None: locally) as DeepSpeed would: same folder, same interpreter."""
    command = [sys.executable, "-m", module]
    if host is not None and through == "srun":
        command = over_srun(host, command, os.getcwd())
    elif host is not None:
        command = over_ssh(host, command, environment, os.getcwd())
    sent = time.time()
    try:
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return Answer(None, f"no answer within {timeout:.0f} s", sent, time.time())
    except OSError as error:
        return Answer(None, f"{command[0]}: {error.strerror}", sent, time.time())
    received = time.time()
    line = next((line for line in done.stdout.splitlines() if line.startswith(MARK)), None)
    if line:
        return Answer(json.loads(line.removeprefix(MARK)), "", sent, received)
    lines = [text for text in (done.stderr + "\n" + done.stdout).splitlines() if text.strip()]
    return Answer(None, lines[-1].strip() if lines else f"exit code {done.returncode}", sent, received)


def over_ssh(host: str, command: Sequence[str], environment: Mapping[str, str], folder: str) -> list[str]:
    """The ssh command that runs `command` on `host`, with every word quoted for the remote shell."""
    travelling = {name: value for name, value in os.environ.items() if name.startswith(_TRAVELS)} | dict(environment)
    travelling["PYTHONPATH"] = ":".join([folder, *filter(None, [travelling.get("PYTHONPATH")])])
    words = ["env", *(f"{name}={value}" for name, value in travelling.items()), *command]
    there = f"cd {shlex.quote(folder)} && exec {shlex.join(words)}"
    return ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=8", "--", host, there]


def over_srun(host: str, command: Sequence[str], folder: str) -> list[str]:
    """The srun command that runs `command` on a node of the allocation, beside other steps."""
    options = ["--overlap", "--export=ALL", "--nodes=1", "--ntasks=1", f"--nodelist={host}", f"--chdir={folder}"]
    return ["srun", *options, *command]


def ask_all(
    names: Sequence[str | None],
    module: str,
    requests: Sequence[dict[str, Any]],
    environment: Mapping[str, str],
    timeout: float,
    through: str = "ssh",
) -> list[Answer]:
    """Ask all hosts in parallel; answers are in the order of `names`."""
    with ThreadPoolExecutor(max(1, min(64, len(names)))) as pool:
        return list(pool.map(lambda name, request: ask(name, module, request, environment, timeout, through), names, requests))
