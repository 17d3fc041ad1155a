"""Rank and world size, the process group, and small exchanges between ranks."""

from __future__ import annotations

import functools
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from ijepa_ds.versions import check_deepspeed


def world_from_environment() -> tuple[int, int, int]:
    """(rank, local rank, world size) as the launcher says it.

    A process that no launcher started is a world of its own; one that SLURM started without saying so to torch is an
    error, never a silent world of one.
    """
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    given = [name for name in names if name in os.environ]
    if len(given) == len(names):
        rank, local_rank, world_size = (int(os.environ[name]) for name in names)
        if world_size > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise ValueError(
                f"WORLD_SIZE is {world_size} but MASTER_ADDR and MASTER_PORT are not both set: the ranks cannot find "
                "each other. Export the first host's name and a free port of it on every rank"
            )
        return rank, local_rank, world_size
    if given:
        raise ValueError(f"{', '.join(given)} set but not {', '.join(sorted({*names} - {*given}))}: a broken launcher?")
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        raise ValueError(
            "SLURM started several tasks but RANK, LOCAL_RANK and WORLD_SIZE are not set: start one task a node with "
            "the deepspeed launcher, or export them from SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS, with MASTER_ADDR and "
            "MASTER_PORT"
        )
    return 0, 0, 1


def initialise_distributed() -> torch.device:
    """Join the other ranks and give this rank's device."""
    check_deepspeed()
    rank, local_rank, world_size = world_from_environment()
    if "MASTER_ADDR" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(world_size))
    accelerator = get_accelerator()
    if accelerator.device_name() == "cuda":
        accelerator.set_device(local_rank)
    # DeepSpeed 0.19 calls collectives by names that PyTorch 2.14 is giving up: nothing the user could mend.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)
    try:
        deepspeed.init_distributed(dist_init_required=True, verbose=False)
    except torch.distributed.DistNetworkError as error:
        raise ValueError(
            f"the ranks cannot meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
            f"{str(error).splitlines()[0]} If another run uses that port, give this one another: deepspeed --master_port N"
        ) from error
    if accelerator.device_name() == "cpu":
        dist.barrier()  # all have mapped all buffers
        _unlink_shared_buffers(rank)
    return torch.device(accelerator.current_device_name())


def _unlink_shared_buffers(rank: int) -> None:
    """Take the name off this rank's buffer of DeepSpeed's CPU collectives, once all ranks have mapped it.

    DeepSpeed leaves 66 MiB a rank in /dev/shm for ever otherwise, also after a crash, and a later run with the same port would
    start on what an earlier one left there.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)


def shut_down_distributed() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()
        host_group.cache_clear()


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def mean_over_ranks(values: Tensor) -> Tensor:
    """Average of a small tensor over all ranks, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


@functools.cache
def host_group() -> Any:
    """All ranks, over gloo: for what lies in host memory, and must not wait for a GPU."""
    return torch.distributed.new_group(backend="gloo")


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    gathered: list[Any] = [None] * dist.get_world_size()
    torch.distributed.all_gather_object(gathered, value, group=host_group())
    return gathered
