"""Rank, world size and rendezvous address as launchers export them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping

from ijepa_ds.errors import NetworkError, UserError

START_TIMEOUT = 180.0  # seconds; `run.start_timeout` by default, and for commands without that key


_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_NUMBER = re.compile(r"\s*(\d+)\s*(?:\(x\d+\)\s*)?")  # SLURM writes "12(x2)" for 12 on each of 2 nodes


def number_in(environment: Mapping[str, str], name: str) -> int | None:
    """The whole number in a variable of a launcher or of SLURM; None if it is unset or empty.

    Raises:
        UserError: it is no number.
    """
    text = environment.get(name, "")
    if not text.strip():
        return None
    match = _NUMBER.fullmatch(text)
    if not match:
        raise UserError(f"the environment variable {name} is {text!r}, expected a whole number: correct or unset it")
    return int(match[1])


def ranks_here(environment: Mapping[str, str]) -> int:
    """How many ranks share this host, as far as the launcher tells; else 1."""
    return number_in(environment, "LOCAL_SIZE") or number_in(environment, "LOCAL_WORLD_SIZE") or 1


def launcher_world() -> tuple[int, int, int] | None:
    """(rank, local rank, world size) from the environment; None if no launcher started this process.

    A world of one rank needs no LOCAL_RANK, and neither does a rank that is alone on its host (LOCAL_WORLD_SIZE=1).

    Raises:
        UserError: only some of the three variables are set, or they contradict each other.
    """
    rank, local_rank, world_size = (number_in(os.environ, name) for name in _RANKS)
    missing = [name for name, value in zip(_RANKS, (rank, local_rank, world_size), strict=True) if value is None]
    if len(missing) == len(_RANKS):
        return None
    alone = world_size == 1 or (number_in(os.environ, "LOCAL_WORLD_SIZE") or number_in(os.environ, "LOCAL_SIZE")) == 1
    if missing == ["LOCAL_RANK"] and alone:
        local_rank = 0
    elif missing:
        given = [name for name in _RANKS if name not in missing]
        hint = "; where each pod or host has one rank, set LOCAL_RANK=0" if missing == ["LOCAL_RANK"] else ""
        raise UserError(
            f"{', '.join(given)} set but not {', '.join(missing)}: a launcher sets all three{hint}; to train in one process, "
            "unset them"
        )
    assert rank is not None and local_rank is not None and world_size is not None
    if rank >= world_size or local_rank > rank:
        raise UserError(
            f"RANK={rank}, LOCAL_RANK={local_rank}, WORLD_SIZE={world_size} contradict each other: ranks are 0 to "
            "WORLD_SIZE - 1, and LOCAL_RANK counts those of one host"
        )
    return rank, local_rank, world_size


def world_from_environment() -> tuple[int, int, int]:
    """(rank, local rank, world size) of a training process.

    Without a launcher the process is the only rank. SLURM tasks without the variables are an error, not one-rank worlds.

    Raises:
        UserError: the variables are incomplete.
    """
    world = launcher_world()
    if world and world[2] > 1 and not (os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        raise UserError(
            f"WORLD_SIZE is {world[2]} but MASTER_ADDR and MASTER_PORT are not both set: the ranks cannot find "
            "each other. Export the first host's name and a free port of it on every rank"
        )
    if world and world[2] > 1 and not 0 < (number_in(os.environ, "MASTER_PORT") or 0) < 65536:
        raise UserError(f"the environment variable MASTER_PORT is {os.environ['MASTER_PORT']!r}, expected a port: 1 to 65535")
    if not world and (number_in(os.environ, "SLURM_NTASKS") or 1) > 1:
        raise UserError(
            "SLURM started several tasks but RANK, LOCAL_RANK and WORLD_SIZE are not set: start one task a node with "
            "the deepspeed launcher, or export them from SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS, with MASTER_ADDR and "
            "MASTER_PORT"
        )
    return world or (0, 0, 1)


def ensure_address() -> None:
    """Where there is no launcher, or this process is alone, choose address and port of the store."""
    world_size = number_in(os.environ, "WORLD_SIZE") or 1
    if world_size == 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def cannot_connect(error: Exception) -> NetworkError:
    """What PyTorch says about a store that cannot be opened or reached, with what to do."""
    return NetworkError(
        f"the ranks cannot connect to each other at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
        f"{str(error).splitlines()[0]} If another run uses that port, give this one another: deepspeed --master_port N"
    )
