"""What DeepSpeed's launcher would end with a traceback, found in its command line before it is started. Needs no torch."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ijepa_ds.cluster.hosts import only_other_host, parse_hostfile
from ijepa_ds.errors import UserError


def has_gpu() -> bool:
    """Whether this machine has device files of NVIDIA GPUs; in WSL they have another name."""
    return bool(glob.glob("/dev/nvidia[0-9]*")) or os.path.exists("/dev/dxg")


def launcher_problems(command: Sequence[str], environment: Mapping[str, str], gpu: bool) -> list[str]:
    """A line for each problem of a command that begins with `deepspeed`; empty for other commands.

    Args:
        command: its words.
        environment: that it gets.
        gpu: whether this machine has a GPU.
    """
    if not command or os.path.basename(command[0]) != "deepspeed":
        return []
    options = _options(command)
    found = []
    if environment.get("DS_ACCELERATOR") == "cuda" and not gpu:
        found.append("DS_ACCELERATOR=cuda, but this machine has no NVIDIA GPU: unset it, or export DS_ACCELERATOR=cpu")
    hostfile, include = options.get("hostfile"), options.get("include")
    if hostfile is not None and not Path(hostfile).is_file():
        text = "DeepSpeed would train on this host alone; mend the path, or leave the option out"
        found.append(f"--hostfile {hostfile}: there is no such file. {text}")
    elif hostfile is not None:
        try:
            parse_hostfile(Path(hostfile))
        except UserError as error:
            found += str(error).splitlines()
        if not {"--force_multi", "--no_ssh"} & set(command) and (other := only_other_host(Path(hostfile))):
            text = "to use it, add --force_multi or start there without --hostfile"
            found.append(f"--hostfile {hostfile} has one host, {other}: DeepSpeed would start its ranks on this host; {text}")
    if include and hostfile is None and not gpu and re.search(r":.*[1-9]", include):
        text = "it counts GPUs, and this machine has none; use --num_gpus N for N ranks on the CPU"
        found.append(f"--include {include}: {text}")
    return found


def _options(command: Sequence[str]) -> dict[str, str]:
    """The launcher's own options with a value, as far as its script or module."""
    names = {"--hostfile": "hostfile", "-H": "hostfile", "--include": "include", "-i": "include"}
    found = {}
    for word, following in zip(command[1:], [*command[2:], ""], strict=True):
        if word in ("--module", "-m") or word.endswith(".py"):
            break
        name, equals, value = word.partition("=")
        if name in names:
            found[names[name]] = value if equals else following
    return found
