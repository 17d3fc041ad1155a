"""Master weights and Adam moments that DeepSpeed 0.19 keeps in files between steps (`offload_optimizer.device: nvme`).

DeepSpeed reads the files of a sub-group with O_DIRECT before it updates the sub-group, writes them back afterwards, and
leaves empty tensors in memory. Between steps the files hold the state. Here they are mapped into memory, so that other code
sees plain float32 tensors. Writes to a mapping go to the page cache; the kernel flushes them before the next direct read,
and drops pages that a direct write made stale.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")
SECTOR = 128  # float32 values in 512 bytes, the alignment of a direct read


def check_async_io() -> None:
    """Check that DeepSpeed's asynchronous I/O can be built.

    Raises:
        ValueError: it cannot; with what to install.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            "offload_optimizer.device nvme needs libaio, which is not installed (or has no headers): apt-get install "
            "libaio-dev, dnf install libaio-devel, or conda install libaio with CFLAGS=-I$CONDA_PREFIX/include and "
            "LDFLAGS=-L$CONDA_PREFIX/lib exported on every host"
            + ("" if shutil.which("c++") else "; and a C++ compiler (c++), which is missing too")
        )


def mapped(path: Path, numel: int, create: bool = False) -> Tensor:
    """Map a file as a CPU tensor, float32 `[numel]`; writes to the tensor reach the file."""
    if create:
        path.unlink(missing_ok=True)
    elif path.stat().st_size < 4 * numel:
        raise OSError(f"{path} is shorter than the {numel} float32 numbers that DeepSpeed writes there")
    return torch.from_file(str(path), shared=True, size=numel, dtype=torch.float32)


class SwapFiles:
    """Stage-3 sub-groups whose state is in files; those below 1 MiB stay in memory."""

    def __init__(self, optimizer: Any) -> None:
        """Wrap DeepSpeed's ZeRO-3 `optimizer`."""
        self._optimizer, self._swapper = optimizer, optimizer.optimizer_swapper
        self._write_gradients = self._swapper.swap_out_gradients
        self._swapper.swap_out_gradients = self._swap_out_gradients

    def _swap_out_gradients(self, parameter: Any, gradient_offsets: list[int], gradient_tensors: list[Tensor]) -> None:
        """Write gradients to files as DeepSpeed does, but keep those off a sector boundary in memory.

        DeepSpeed reads each gradient back by a direct read to its offset in the sub-group. Such a read needs an aligned
        address; without one, the step silently uses wrong gradients.
        """
        info = self._swapper.swap_params_info[parameter.ds_id]
        files: list[tuple[int, Tensor]] = []
        for offset, gradient in zip(gradient_offsets, gradient_tensors, strict=True):
            if offset % SECTOR:
                info.unswapped_gradients[offset] = gradient
            else:
                files.append((offset, gradient))
        offsets, tensors = [offset for offset, _ in files], [gradient for _, gradient in files]
        self._write_gradients(parameter=parameter, gradient_offsets=offsets, gradient_tensors=tensors)

    @property
    def folder(self) -> Path:
        """This rank's swap folder."""
        return Path(self._swapper.swap_folder)

    def has(self, group: int) -> bool:
        """Whether the state of a sub-group is in files."""
        return bool(self._optimizer._swappable_optimizer_subgroup(group))

    def numel(self, group: int) -> int:
        """Number of elements of a sub-group on this rank."""
        return int(self._optimizer.fp16_partitioned_groups_flat_numel[group])

    def master(self, group: int) -> Tensor:
        """Master weights of a sub-group, float32 `[numel]`."""
        return self._map(group, self._info(group).tensors[0].swap_path)

    def moments(self, group: int, state: dict[str, Any]) -> dict[str, Tensor]:
        """Adam's moments of a sub-group; empty before the first step. `state`: the inner optimizer's entry for it."""
        if not state:
            return {}
        return {"step": state["step"], **{key: self._map(group, self._path(group, key)) for key in MOMENTS}}

    def set_moments(self, group: int, state: dict[str, Any]) -> None:
        """Move the moments in `state`, the inner optimizer's entry for a sub-group, to files."""
        info, holder = self._info(group), self._holder(group)
        del info.tensors[1:]
        info.has_state_tensors = False
        aligned = self._swapper._io_aligned_numel(self.numel(group))
        for key in MOMENTS:
            file = mapped(Path(self._path(group, key)), aligned, create=True)
            file[: self.numel(group)].copy_(state[key].view(-1))
        self._swapper._update_param_state_info(info, holder)
        for context in info.tensors[1:]:
            context.release_memory()

    def forget_moments(self) -> None:
        """Reset to the state before the first step."""
        self._swapper.purge_state()

    def beside(self, group: int, name: str) -> Tensor:
        """A new file-backed copy of a sub-group's master weights."""
        buffer = mapped(Path(self._path(group, name)), self.numel(group), create=True)
        return buffer.copy_(self.master(group))

    def _holder(self, group: int) -> Any:
        return self._optimizer.fp32_partitioned_groups_flat[group]

    def _info(self, group: int) -> Any:
        return self._swapper.swap_params_info[self._holder(group).ds_id]

    def _path(self, group: int, key: str) -> str:
        return str(self.folder / f"{key}-{self._holder(group).ds_id}.tensor.swp")  # DeepSpeed's file name

    def _map(self, group: int, path: str) -> Tensor:
        return mapped(Path(path), self.numel(group))
