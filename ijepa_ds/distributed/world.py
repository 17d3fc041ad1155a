"""The process group, created through DeepSpeed, and what needs it."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path

import deepspeed
import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from ijepa_ds.distributed.environment import world_from_environment
from ijepa_ds.distributed.exchange import PATIENCE, host_group
from ijepa_ds.errors import NetworkError
from ijepa_ds.versions import check_deepspeed


def initialise_distributed() -> torch.device:
    """Create the process group; this rank's device.

    Raises:
        UserError: the environment is incomplete.
        NetworkError: the ranks cannot connect to each other.
    """
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
    # DeepSpeed 0.19 calls collectives by names that PyTorch 2.14 deprecates; users cannot change that.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)
    try:
        deepspeed.init_distributed(dist_init_required=True, verbose=False)
    except (torch.distributed.DistNetworkError, torch.distributed.DistStoreError) as error:
        raise NetworkError(
            f"the ranks cannot connect to each other at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}: "
            f"{str(error).splitlines()[0]} If another run uses that port, give this one another: deepspeed --master_port N"
        ) from error
    # after the ranks have met: an unreachable rank ends the start within the backend's own time limit
    module = torch.distributed
    set_timeout = getattr(module, "set_timeout", None) or module.distributed_c10d._set_pg_timeout  # the name before 2.14
    set_timeout(PATIENCE)
    if accelerator.device_name() == "cpu":
        dist.barrier()  # every rank has mapped every buffer
        _unlink_shared_buffers(rank)
    return torch.device(accelerator.current_device_name())


def _unlink_shared_buffers(rank: int) -> None:
    """Unlink this rank's shared-memory buffer of DeepSpeed's CPU collectives, once all ranks have mapped it.

    Otherwise DeepSpeed leaves 66 MiB a rank in /dev/shm, also after a crash, and a later run with the same port starts from
    the old contents.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)


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
