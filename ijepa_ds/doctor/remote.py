"""Runs a module on all hosts at the same time, through ssh or locally."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ijepa_ds.doctor.probe import MARK

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


def ask(host: str | None, module: str, request: dict[str, Any], environment: Mapping[str, str], timeout: float) -> Answer:
    """Run `python -m module` on a host (None: locally) as DeepSpeed would: same folder, same interpreter."""
    command = [sys.executable, "-m", module]
    if host is not None:
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


def ask_all(
    names: Sequence[str | None], module: str, requests: Sequence[dict[str, Any]], environment: Mapping[str, str], timeout: float
) -> list[Answer]:
    """Ask all hosts in parallel; answers are in the order of `names`."""
    with ThreadPoolExecutor(max(1, min(64, len(names)))) as pool:
        return list(pool.map(lambda name, request: ask(name, module, request, environment, timeout), names, requests))
