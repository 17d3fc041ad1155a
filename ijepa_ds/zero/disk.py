"""Master weights and Adam moments that DeepSpeed 0.19 keeps in files between steps (`offload_optimizer.device: nvme`).

DeepSpeed reads a sub-group's files with O_DIRECT before it updates it, writes them back after it, and leaves empty tensors
behind. Between steps the files themselves are the state: here they are mapped into memory, so that everyone else sees plain
float32 tensors. What is written to a mapping is in the page cache; the kernel writes it out before the next direct read,
and drops pages that a direct write made stale.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
SECTOR = 128  # float32 numbers in the 512 bytes that a direct read's address must be a multiple of


def check_async_io() -> None:
    """Refuse to start where DeepSpeed's asynchronous I/O cannot be built.

    Raises:
        ValueError: says what to install.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ValueError(
            "offload_optimizer.device nvme needs libaio, which is not installed (or has no headers): apt-get install "
            "libaio-dev, dnf install libaio-devel, or conda install libaio with CFLAGS=-I$CONDA_PREFIX/include and "
            "LDFLAGS=-L$CONDA_PREFIX/lib exported on every host"
            + ("" if shutil.which("c++") else "; and a C++ compiler (c++), which is missing too")
        )


def mapped(path: Path, numel: int, create: bool = False) -> Tensor:
    """`[numel]` float32 on the CPU that is a file's content; written pages go to the file by themselves."""
    if create:
        path.unlink(missing_ok=True)
    elif path.stat().st_size < 4 * numel:
        raise OSError(f"{path} is shorter than the {numel} float32 numbers that DeepSpeed should have written there")
    return torch.from_file(str(path), shared=True, size=numel, dtype=torch.float32)


class SwapFiles:
    """Stage 3's sub-groups that live in files. Small ones (under 1 MiB) stay in memory."""

    def __init__(self, optimizer: Any) -> None:
        """Of DeepSpeed's ZeRO-3 optimizer."""
        self._optimizer, self._swapper = optimizer, optimizer.optimizer_swapper
        self._write_gradients = self._swapper.swap_out_gradients
        self._swapper.swap_out_gradients = self._swap_out_gradients

    def _swap_out_gradients(self, parameter: Any, gradient_offsets: list[int], gradient_tensors: list[Tensor]) -> None:
        """DeepSpeed's, but gradients off a sector boundary stay in memory.

        Each is read back to where it lies among the others, by a direct read, which wants an address on such a boundary.
        Without it the step is made with something else, and nothing says so.
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
        """This rank's."""
        return Path(self._swapper.swap_folder)

    def has(self, group: int) -> bool:
        """Whether a sub-group's state is in files."""
        return bool(self._optimizer._swappable_optimizer_subgroup(group))

    def numel(self, group: int) -> int:
        """Elements of a sub-group on this rank."""
        return int(self._optimizer.fp16_partitioned_groups_flat_numel[group])

    def master(self, group: int) -> Tensor:
        """`[numel]`: the master weights of a sub-group."""
        return self._map(group, self._info(group).tensors[0].swap_path)

    def moments(self, group: int, state: dict[str, Any]) -> dict[str, Tensor]:
        """Adam's, of a sub-group, given what the inner optimizer has for it; empty before its first step."""
        if not state:
            return {}
        return {"step": state["step"], **{key: self._map(group, self._path(group, key)) for key in MOMENTS}}

    def set_moments(self, group: int, state: dict[str, Any]) -> None:
        """Move new moments, already in the inner optimizer's `state` of a sub-group, to files."""
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
        """As before the first step."""
        self._swapper.purge_state()

    def beside(self, group: int, name: str) -> Tensor:
        """A new file-backed buffer like a sub-group's master weights, with their values."""
        buffer = mapped(Path(self._path(group, name)), self.numel(group), create=True)
        return buffer.copy_(self.master(group))

    def _holder(self, group: int) -> Any:
        return self._optimizer.fp32_partitioned_groups_flat[group]

    def _info(self, group: int) -> Any:
        return self._swapper.swap_params_info[self._holder(group).ds_id]

    def _path(self, group: int, key: str) -> str:
        return str(self.folder / f"{key}-{self._holder(group).ds_id}.tensor.swp")  # DeepSpeed's own name for a moment

    def _map(self, group: int, path: str) -> Tensor:
        return mapped(Path(path), self.numel(group))
