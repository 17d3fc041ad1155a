"""On which host each rank should run, by what the launcher tells: for messages about ranks that never came. Needs no torch."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ijepa_ds.cluster.hosts import only_other_host
from ijepa_ds.cluster.processes import parents

_WORLD = "--world_info="  # option of DeepSpeed's launcher: base64 of JSON {host: [local ranks]}
_NODE = re.compile(r"([^,\[\]]+)(?:\[([^\]]*)\])?([^,\[\]]*)")


@dataclass(frozen=True)
class Expected:
    """Hosts of ranks as far as they are known.

    Attributes:
        hosts: of rank 0, 1, ...; empty: not told.
        of_node: ranks of a host, if each has as many; 0: not told.
    """

    hosts: tuple[str, ...] = ()
    of_node: int = 0

    def where(self, rank: int, came: Mapping[int, str]) -> str:
        """Words for messages: "on host NAME", or what else is known.

        Args:
            rank: that has not come.
            came: hosts of the ranks that have come.
        """
        if rank < len(self.hosts):
            return f"on host {self.hosts[rank]}"
        if not self.of_node:
            return "on a host that the launcher does not name"
        node = rank // self.of_node
        beside = next((host for other, host in came.items() if other // self.of_node == node), None)
        return f"on host {beside}" if beside else f"on node {node} (from 0) of {self.of_node} ranks each"


def expected_hosts() -> Expected:
    """What DeepSpeed's launcher, SLURM or torchrun tell about the hosts of all ranks."""
    size = os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or ""
    of_node = int(size) if size.isdigit() else 0
    return Expected(_from_deepspeed() or _from_slurm(os.environ), of_node)


def hostfile_warning() -> str:
    """What is odd about the hostfile that was given to DeepSpeed's launcher; it then starts ranks on this host alone."""
    for process in parents():
        words = process.words()
        if not any(os.path.basename(word) in ("deepspeed", "deepspeed.launcher.runner", "runner.py") for word in words[:4]):
            continue
        for word, following in zip(words, [*words[1:], ""], strict=True):
            given = following if word in ("--hostfile", "-H") else word.removeprefix("--hostfile=")
            if not word.startswith(("--hostfile", "-H")) or not given:
                continue
            path = process.folder() / given
            if not path.is_file():
                return f"there is no hostfile {given}, so DeepSpeed's launcher uses this host alone"
            if not {"--force_multi", "--no_ssh"} & set(words) and (other := only_other_host(path)):
                return f"the hostfile {given} has one host, {other}, but DeepSpeed's launcher starts ranks on this one"
    return ""


def _from_deepspeed() -> tuple[str, ...]:
    for process in parents():
        words = process.words()
        told = next((word.removeprefix(_WORLD) for word in words if word.startswith(_WORLD)), None)
        if told:
            try:
                return tuple(host for host, ranks in json.loads(base64.urlsafe_b64decode(told)).items() for _ in ranks)
            except (ValueError, TypeError, AttributeError):
                return ()
    return ()


def _from_slurm(environment: Mapping[str, str]) -> tuple[str, ...]:
    """From "node[1-3,7],login" and "2(x3),1": one host a task, in blocks, which is SLURM's default."""
    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST", ""))
    counts: list[int] = []
    for part in filter(None, environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(",")):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not match:
            return ()
        counts += [int(match[1])] * int(match[2] or 1)
    if len(nodes) != len(counts):
        return ()
    return tuple(node for node, count in zip(nodes, counts, strict=True) for _ in range(count))


def expand_nodes(text: str) -> list[str]:
    """SLURM's list of nodes: "a[01-03,7]b,c" -> a01b, a02b, a03b, a7b, c; empty if it is no such list."""
    found: list[str] = []
    for match in _NODE.finditer(text):
        before, inside, after = match.groups()
        if inside is None:
            found.append(before + after)
            continue
        for part in inside.split(","):
            first, _, last = part.partition("-")
            if not first.isdigit() or not (last or first).isdigit():
                return []
            found += [f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last or first) + 1)]
    return found
