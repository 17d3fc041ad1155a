"""Gathers and reductions whose host time does not grow with the number of ranks.

DeepSpeed slices every tensor once for each rank, in Python, before a reduce-scatter and after an all-gather. The functions
here use views of one `[ranks, columns]` buffer: row r is what rank r sends or keeps, and each tensor has a range of columns.
The buffers, the collectives and the results are the same. `zero.owners` does the reductions of stages 1 and 2.
docs/host-time.md explains and measures it.

The replacement is made only where DeepSpeed's source is known (`KNOWN`, `KNOWN_STAGES_1_AND_2`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from importlib import metadata
from types import CellType
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.comm import coalesced_collectives
from deepspeed.runtime.zero import partition_parameters, stage3, stage_1_and_2
from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle, Init, ZeroParamStatus
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import instrument_w_nvtx, nvtx
from torch import Tensor

from ijepa_ds.zero import hooks, owners
from ijepa_ds.zero.known import Known, unknown

_CONVERT = "_convert_to_deepspeed_param"
# What is replaced or relied on: module, name, SHA-256 of its source in DeepSpeed 0.19.8. `_all_gather_dtype` is a local
# function of `_convert_to_deepspeed_param`.
KNOWN: Known = (
    (coalesced_collectives, "reduce_scatter_coalesced", "d49fb6b733d0846606824b192ef1af87571c8370ca64eb8883465194c629a5a0"),
    (partition_parameters, "AllGatherCoalescedHandle", "853535c686bd848605f628283efa6b56a0b7961f0bf4e4dc1657b0b0c3e228c3"),
    (partition_parameters, f"Init.{_CONVERT}", "1c639977bd9a92684657151ff46818f9fd53eb45f5427091170aed30470ab31b"),
    (nvtx, "instrument_w_nvtx", "7315669a42aed901ce0de5f3823a3c318f39456881df042f2ad61929c01772ff"),
)
KNOWN_STAGES_1_AND_2: Known = (
    (
        stage_1_and_2,
        "DeepSpeedZeroOptimizer.average_tensor",
        "da26b2ba0a2f860935611f14eef9e04819cf73cf60e8b282b9c9ab7ef21e75bd",
    ),
    (
        stage_1_and_2,
        "DeepSpeedZeroOptimizer.reduce_independent_p_g_buckets_and_remove_grads",
        "08d7c4942fcfce215982675a95b12b87f544ef4385f1adc573af18503e02c36c",
    ),
    (
        stage_1_and_2,
        "DeepSpeedZeroOptimizer.reduce_ipg_grads",
        "b52c7b10e5c18896b8f529f0229dd627747d5b65a87927d17cdbf9965cb5ba77",
    ),
    (
        stage_1_and_2,
        "DeepSpeedZeroOptimizer.initialize_gradient_partition",
        "6401a1d8cd80b8e9ba844df4cc07f6cf2396c1b2fc8ebd0538071a13ee3d02b0",
    ),
)
_ORIGINAL = stage3.reduce_scatter_coalesced, AllGatherCoalescedHandle.wait, Init._convert_to_deepspeed_param
_DEEPSPEED_WAIT, _DEEPSPEED_CONVERT = _ORIGINAL[1:]
_DEEPSPEED_AVERAGE = DeepSpeedZeroOptimizer.average_tensor
_allowed = True


def install(stage: int = 3) -> str:
    """Replace DeepSpeed's functions in this process, once; call it before `zero.Init` and `deepspeed.initialize`.

    Args:
        stage: of ZeRO, that the answer is about.

    Returns:
        Empty, or why DeepSpeed's own functions stay at this stage, in one line.
    """
    if not _allowed:
        return ""
    unknown_3, unknown_12 = unknown(KNOWN), unknown(KNOWN_STAGES_1_AND_2)
    if not unknown_3:
        _set(reduce_scatter_coalesced, wait, _convert_to_deepspeed_param)
    other_hooks = hooks.install()
    if not unknown_12:
        DeepSpeedZeroOptimizer.average_tensor = owners.average_tensor
    if stage == 3 and other_hooks and not unknown_3:
        return (
            f"DeepSpeed {metadata.version('deepspeed')} has another {', '.join(other_hooks)} than this version of ijepa_ds "
            "knows: ZeRO-3 keeps DeepSpeed's hooks, which take more host time (docs/host-time.md)"
        )
    others = {1: unknown_12, 2: unknown_12, 3: unknown_3}.get(stage)
    if not others:
        return ""
    cost = "host time grows with the number of ranks" if stage == 3 else "reductions send twice the bytes on many ranks"
    return (
        f"DeepSpeed {metadata.version('deepspeed')} has another {', '.join(others)} than this version of ijepa_ds knows: "
        f"ZeRO-{stage} keeps DeepSpeed's collectives, whose {cost} (docs/host-time.md)"
    )


@contextlib.contextmanager
def deepspeeds_own() -> Iterator[None]:
    """Inside the block, DeepSpeed's own functions are used, for comparisons; engines made inside have to be used inside."""
    global _allowed
    before = stage3.reduce_scatter_coalesced, AllGatherCoalescedHandle.wait, Init._convert_to_deepspeed_param
    average = DeepSpeedZeroOptimizer.average_tensor
    _allowed = False
    _set(*_ORIGINAL)
    installed = hooks.remove()
    DeepSpeedZeroOptimizer.average_tensor = _DEEPSPEED_AVERAGE
    try:
        yield
    finally:
        _allowed = True
        _set(*before)
        if installed:
            hooks.install()
        DeepSpeedZeroOptimizer.average_tensor = average


def _set(reduce_scatter: Callable[..., Any], handle_wait: Callable[..., Any], convert: Callable[..., Any]) -> None:
    """Set the functions in every place where DeepSpeed looks them up."""
    coalesced_collectives.reduce_scatter_coalesced = stage3.reduce_scatter_coalesced = reduce_scatter
    AllGatherCoalescedHandle.wait = handle_wait
    Init._convert_to_deepspeed_param = convert


@instrument_w_nvtx
@torch.no_grad()
def reduce_scatter_coalesced(tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
    """Average tensors over the ranks of `group`; each rank gets its part of every tensor, in one reduce-scatter.

    Args:
        tensors: the same sizes on all ranks. A single one that needs no padding is overwritten.
        group: process group; None: all ranks.

    Returns:
        1-D parts, one for each tensor: `ceil(numel / ranks)` elements; fewer, or none, on the last ranks.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    chunks = [-(-tensor.numel() // world) for tensor in tensors]
    if len(tensors) == 1 and tensors[0].numel() % world == 0:
        buffer = tensors[0].view(-1)
    else:
        dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        rows = torch.empty(world, sum(chunks), dtype=dtype, device=tensors[0].device)
        for tensor, chunk, columns in zip(tensors, chunks, rows.split(chunks, dim=1), strict=True):
            _fill_rows(columns, tensor.view(-1), chunk)
        buffer = rows.view(-1)
    buffer.div_(world)
    own = buffer.narrow(0, rank * sum(chunks), sum(chunks))
    coalesced_collectives._torch_reduce_scatter_fn(buffer, own, group=group)
    numels = [max(0, min(chunk, tensor.numel() - rank * chunk)) for tensor, chunk in zip(tensors, chunks, strict=True)]
    return [part.narrow(0, 0, numel) for part, numel in zip(own.split(chunks), numels, strict=True)]


def _fill_rows(columns: Tensor, flat: Tensor, chunk: int) -> None:
    """Write a tensor row by row: `flat` `[numel]` into `columns` `[ranks, chunk]`; the padding at the end stays as it is."""
    if chunk == 0:
        return
    whole, rest = divmod(flat.numel(), chunk)
    columns.narrow(0, 0, whole).copy_(flat.narrow(0, 0, whole * chunk).view(whole, chunk))
    if rest:
        columns[whole].narrow(0, 0, rest).copy_(flat.narrow(0, whole * chunk, rest))


def _wait(self: Any, handle_dependency: bool = True) -> None:
    """`AllGatherCoalescedHandle.wait`: one copy for each parameter, out of the gathered buffer `[ranks, columns]`.

    Quantised gathers, and gathers of parameters that were converted before `install`, keep DeepSpeed's function.
    """
    if self.complete:
        return
    if not isinstance(self.partitions, Tensor):
        _DEEPSPEED_WAIT(self, handle_dependency)
        return
    instrument_w_nvtx(self.allgather_handle.wait)()
    rows, column = self.partitions, 0
    for param in self.params:
        assert param.ds_status == ZeroParamStatus.INFLIGHT, f"expected param {param.ds_summary()} to be inflight"
        width = param.ds_tensor.ds_numel
        if self.use_secondary_tensor:
            width *= param.ds_secondary_tensor_num_of_groups
        filled = rows[: -(-param.ds_numel // width), column : column + width]
        whole = filled.clone(memory_format=torch.contiguous_format).view(-1)  # always a copy: a view would keep all rows
        # types differ under torch.autocast
        param.data = whole.narrow(0, 0, param.ds_numel).view(param.ds_shape).to(param.ds_tensor.dtype)
        param.ds_status = ZeroParamStatus.AVAILABLE
        column += width
    self.complete = True
    if not get_accelerator().is_synchronized_device():
        if handle_dependency:
            rows.record_stream(get_accelerator().current_stream())
        else:  # the coordinator frees it after it has waited for the stream
            AllGatherCoalescedHandle.data_buffer.append(rows)


_wait.__qualname__ = "AllGatherCoalescedHandle.wait"  # name of its range in a profile
wait = instrument_w_nvtx(_wait)


def _all_gather_dtype(params: list[Any], world_size: int, rank_in_group: int, group: Any, dtype: torch.dtype) -> Any:
    """DeepSpeed's function of this name, with one view `[ranks, columns]` of the gathered buffer instead of a list of rows."""
    types = [partition_parameters.get_allgather_dtype(p, p.ds_tensor) for p in params]
    assert all(found == dtype for found in types), f"a bucket has one communication type: {dtype}, not {types}"
    secondary = params[0].ds_secondary_tensor is not None
    device = get_accelerator().current_device_name()
    columns = sum(p.ds_tensor.ds_numel * (p.ds_secondary_tensor_num_of_groups if secondary else 1) for p in params)
    rows = torch.empty(world_size, columns, dtype=dtype, device=device, requires_grad=False)
    own = [p.ds_secondary_tensor if secondary else p.ds_tensor for p in params]
    instrument_w_nvtx(torch.cat)([tensor.to(device).to(dtype) for tensor in own], out=rows[rank_in_group])
    handle = partition_parameters._dist_allgather_fn(rows[rank_in_group], rows.view(-1), group)
    return AllGatherCoalescedHandle(
        allgather_handle=handle,
        params=params,
        partitions=rows,
        world_size=world_size,
        use_secondary_tensor=secondary,
    )


def _convert_to_deepspeed_param(self: Any, param: Any) -> None:
    """DeepSpeed's method of this name; then replace `_all_gather_dtype`, a local function that the parameter's gathers call."""
    _DEEPSPEED_CONVERT(self, param)
    gather = _variable(param.all_gather_coalesced, "func").cell_contents  # inside `instrument_w_nvtx`
    coalesced = _variable(gather, "_all_gather_coalesced").cell_contents
    _variable(coalesced, "_all_gather_dtype").cell_contents = _all_gather_dtype


def _variable(function: Any, name: str) -> CellType:
    """The variable of an enclosing function that `function` uses."""
    return function.__closure__[function.__code__.co_freevars.index(name)]
