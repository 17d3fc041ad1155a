"""Rank and world size as launchers export them."""

from __future__ import annotations

import os

from ijepa_ds.errors import UserError


def launcher_world() -> tuple[int, int, int] | None:
    """(rank, local rank, world size) from the environment; None if no launcher started this process.

    Raises:
        ValueError: only some of the three variables are set.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    missing = sorted(name for name in names if name not in os.environ)
    if len(missing) == len(names):
        return None
    if missing:
        given = [name for name in names if name not in missing]
        raise UserError(f"{', '.join(given)} set but not {', '.join(missing)}: a broken launcher?")
    try:
        rank, local_rank, world_size = (int(os.environ[name]) for name in names)
    except ValueError as error:
        raise UserError(f"RANK, LOCAL_RANK and WORLD_SIZE must be whole numbers: {error}; a broken launcher?") from error
    return rank, local_rank, world_size


def world_from_environment() -> tuple[int, int, int]:
    """(rank, local rank, world size) of a training process.

    Without a launcher the process is the only rank. SLURM tasks without the variables are an error, not one-rank worlds.

    Raises:
        ValueError: the variables are incomplete.
    """
    world = launcher_world()
    if world and world[2] > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(
            f"WORLD_SIZE is {world[2]} but MASTER_ADDR and MASTER_PORT are not both set: the ranks cannot find "
            "each other. Export the first host's name and a free port of it on every rank"
        )
    if not world and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise UserError(
            "SLURM started several tasks but RANK, LOCAL_RANK and WORLD_SIZE are not set: start one task a node with "
            "the deepspeed launcher, or export them from SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS, with MASTER_ADDR and "
            "MASTER_PORT"
        )
    return world or (0, 0, 1)
