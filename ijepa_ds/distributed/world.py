"""The process group, created through DeepSpeed, and what needs it."""

from __future__ import annotations

import os
import socket
import warnings
from datetime import timedelta

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops import __compatible_ops__ as compatible_ops
from torch import Tensor

from ijepa_ds.distributed.environment import START_TIMEOUT, cannot_connect, ensure_address, world_from_environment
from ijepa_ds.distributed.exchange import PATIENCE, host_group
from ijepa_ds.errors import UserError
from ijepa_ds.versions import check_deepspeed


def initialise_distributed(timeout: float = START_TIMEOUT) -> torch.device:
    """Create the process group; this rank's device.

    Args:
        timeout: seconds after which ranks that do not come end the start.

    Raises:
        UserError: the environment is incomplete.
        NetworkError: the ranks cannot connect to each other.
    """
    check_deepspeed()
    rank, local_rank, world_size = world_from_environment()
    ensure_address()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(local_rank), WORLD_SIZE=str(world_size))
    accelerator = get_accelerator()
    if accelerator.device_name() == "cuda":
        _check_gpu(local_rank)
        accelerator.set_device(local_rank)
    # DeepSpeed 0.19 calls collectives by names that PyTorch 2.14 deprecates; users cannot change that.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)
    without_shared_buffers()
    try:
        deepspeed.init_distributed(dist_init_required=True, verbose=False, timeout=timedelta(seconds=timeout))
    except torch.distributed.DistError as error:
        raise cannot_connect(error) from error
    # after the ranks have met: an unreachable rank ends the start within the time limit above
    module = torch.distributed
    set_timeout = getattr(module, "set_timeout", None) or module.distributed_c10d._set_pg_timeout  # the name before 2.14
    set_timeout(PATIENCE)
    return torch.device(accelerator.current_device_name())


def _check_gpu(local_rank: int) -> None:
    """Refuse a rank without a GPU in words; CUDA's own error names neither the variable nor the rank."""
    count = torch.cuda.device_count()
    if local_rank < count:
        return
    kind = os.environ.get("DS_ACCELERATOR")
    asked = f"DS_ACCELERATOR={kind} asks for GPUs" if kind else "ranks use GPUs"
    todo = "start at most that many ranks a host" if count else "unset DS_ACCELERATOR or set it to cpu, or use a host with GPUs"
    found = f"PyTorch sees {count} on host {socket.gethostname()}, none for local rank {local_rank}"
    raise UserError(f"{asked}, but {found}: {todo}")


def without_shared_buffers() -> None:
    """Keep DeepSpeed from making shared memory for the ranks of a host without GPUs.

    Only its inference uses it. Making it compiles an operator, takes 66 MiB a rank in /dev/shm, and waits in C++ for ever,
    with Python locked, when a rank dies meanwhile (DeepSpeed 0.19, `shm.cpp`).
    """
    compatible_ops["deepspeed_shm_comm"] = False


def shut_down_distributed() -> None:
    """Destroy the process group."""
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
