"""Recommended environment variables for every rank; variables that are set already are kept (`docs/launch.md`)."""

from __future__ import annotations

import glob
from collections.abc import Mapping, MutableMapping

from ijepa_ds import machine
from ijepa_ds.cluster.hosts import interface_towards
from ijepa_ds.distributed.environment import number_in, ranks_here

_GPU_THREADS = 8  # a rank with a GPU computes little on the CPU; more threads only compete


def recommended(environment: Mapping[str, str], cores: int, has_gpu: bool) -> dict[str, str]:
    """Values for variables that `environment` does not set.

    Args:
        environment: of a rank.
        cores: number of cores that this process may run on.
        has_gpu: whether this host has a GPU.
    """
    ranks = ranks_here(environment)
    share = _share(environment, cores, ranks)
    values = {"OMP_NUM_THREADS": str(min(share, _GPU_THREADS) if has_gpu else share)}
    if (number_in(environment, "WORLD_SIZE") or 1) > 1:
        # otherwise every rank connects to every other one at the start: above 1,000 ranks more sockets than a process may open
        values["TORCH_GLOO_LAZY_INIT"] = "1"
    if (number_in(environment, "WORLD_SIZE") or 1) > ranks:
        # by default gloo uses the interface of the host's own name: on Debian and Ubuntu that is the loopback
        interface = interface_towards(environment.get("MASTER_ADDR", ""))
        if interface:
            values |= {"GLOO_SOCKET_IFNAME": interface.name, "NCCL_SOCKET_IFNAME": interface.name}
    return {name: value for name, value in values.items() if not environment.get(name)}


def _share(environment: Mapping[str, str], cores: int, ranks: int) -> int:
    """Cores of one rank: the smaller of affinity and SLURM_CPUS_PER_TASK, shared by the ranks unless each is a task."""
    a_task = number_in(environment, "SLURM_CPUS_PER_TASK") or 0
    limit = min(cores, a_task) if a_task else cores
    is_task = (environment.get("SLURM_STEP_NUM_TASKS"), environment.get("SLURM_PROCID")) == (
        environment.get("WORLD_SIZE", "1"),
        environment.get("RANK", "0"),
    )
    # Without the variable, a task has cores of its own if srun bound it: then all tasks together fit into the job's.
    bound = cores * ranks <= (number_in(environment, "SLURM_CPUS_ON_NODE") or 0)
    return limit if is_task and (a_task or bound) else max(1, limit // ranks)


def name_ranks(environment: MutableMapping[str, str]) -> None:
    """Set the variables that torch reads in a rank that `mpirun` (Open MPI, MVAPICH2) started; otherwise it would be alone."""
    for prefix in ("OMPI_COMM_WORLD", "MV2_COMM_WORLD"):
        if "RANK" not in environment and f"{prefix}_SIZE" in environment:
            names = {"RANK": "RANK", "LOCAL_RANK": "LOCAL_RANK", "WORLD_SIZE": "SIZE", "LOCAL_SIZE": "LOCAL_SIZE"}
            theirs = {name: environment.get(f"{prefix}_{theirs}") for name, theirs in names.items()}
            environment.update({name: value for name, value in theirs.items() if value is not None})


def settle(environment: MutableMapping[str, str]) -> list[str]:
    """Set the unset variables; returns "NAME=value" for each. Call it before torch is imported, which reads them."""
    name_ranks(environment)
    values = recommended(environment, machine.cores(), bool(glob.glob("/dev/nvidia[0-9]*")))
    environment.update(values)
    return [f"{name}={value}" for name, value in values.items()]
