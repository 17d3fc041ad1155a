"""Less Python in the hooks of ZeRO-3, with the same effect.

DeepSpeed gathers and releases parameters in hooks of every module. Around that work it walks all modules for their parameters,
formats messages that it does not print, and enters several wrappers for each parameter. For ViT-H this is half of the function
calls of a compiled step. docs/host-time.md measures each part.

The functions are replaced only where DeepSpeed's source is known (`KNOWN`).
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable
from typing import Any

from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator
from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum
from deepspeed.runtime.zero.partition_parameters import Init, ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from deepspeed.utils import nvtx
from torch import nn

from ijepa_ds.zero.known import Known, unknown

KNOWN: Known = (
    (partition_parameters, "print_rank_0", "a3b00446eeeed2900db656591cf12f990492e13ac9bc3e4f721aabf822183d50"),
    (partition_parameters, "free_param", "5d8e7e6c86ea7de10ad8644f3f0bfba2c027c57f198c1d3810f2da15dab8a8aa"),
    (partition_parameters, "Init._partition", "19540d586f836b63b04930b978c8774ea9d4bfeac73f4df976990c971fe67aaf"),
    (partition_parameters, "Init._partition_param", "311d214b04184de112ad29e6f1b33d494aacbb9d22cb2b60011ddf35a0632c1a"),
    (partitioned_param_coordinator, "iter_params", "a68163d2d610927e6168219995b1bf0cd68e52ebe459889d7e16e71420d18be7"),
    (partitioned_param_coordinator, "get_all_parameters", "2b54ab90bd6231a452ab62e2679e18aab42953225399da7848a4890e5f1d2a5c"),
    (
        partitioned_param_coordinator,
        "PartitionedParameterCoordinator.__release_param",
        "037b4c9dcf736d9abc6adbbdac6f2e3f8d7d5dfe75319f41101df062d040062a",
    ),
)
_PARAMETERS = "_fixed_parameters"  # attribute of a module: its own parameters, and those of its children too
_COUNT = "_PartitionedParameterCoordinator__n_available_params"
_deepspeed_print, _deepspeed_iter = partition_parameters.print_rank_0, partitioned_param_coordinator.iter_params
_deepspeed_partition = Init._partition
_before: list[tuple[Any, str, Any]] = []  # what is replaced: object, name, DeepSpeed's value


def install() -> list[str]:
    """Replace DeepSpeed's functions in this process, once; call it before `zero.Init`.

    Returns:
        Names of functions whose source is another; nothing is replaced then.
    """
    others = unknown(KNOWN)
    if not others and not _before:
        for module in (partition_parameters, partitioned_param_coordinator, parameter_offload):
            _replace(module, "print_rank_0", print_rank_0)
        for module in (partitioned_param_coordinator, parameter_offload):
            _replace(module, "iter_params", iter_params)
        _replace(partition_parameters, "debug_param2name_id_shape_device", lambda param: "")  # of messages never printed
        _replace(nvtx, "enable_nvtx", False)
        _replace(Init, "_partition", partition)
        _replace(PartitionedParameterCoordinator, "_PartitionedParameterCoordinator__release_param", release_param)
        _keep_signature(LinearFunctionForZeroStage3)
    return others


def remove() -> bool:
    """Put DeepSpeed's functions back; whether any was replaced."""
    installed = bool(_before)
    while _before:
        setattr(*_before.pop())
    return installed


def _replace(where: Any, name: str, value: Any) -> None:
    _before.append((where, name, getattr(where, name)))
    setattr(where, name, value)


def fix_modules(model: nn.Module) -> None:
    """Remember the modules of an initialised ZeRO-3 engine and their parameters, which must not change any more.

    It does nothing where DeepSpeed's functions stay.
    """
    if not _before:
        return
    modules = tuple(model.modules())
    for module in modules:
        own, whole = (tuple(module.parameters(recurse)) for recurse in (False, True))
        module.__dict__[_PARAMETERS] = (own, whole)
        for function in (module.__dict__.get("pre_bwd_fn"), module.__dict__.get("post_bwd_fn")):
            if function:
                _keep_signature(function)
    model.__dict__["modules"] = lambda: iter(modules)  # the engine walks them twice a step


def _keep_signature(function: Any) -> None:
    """PyTorch asks for the signature in every call of an autograd function, and computes it if it is not there."""
    function.forward.__signature__ = inspect.signature(function.forward)


def print_rank_0(message: str, debug: bool = False, force: bool = False) -> None:
    """DeepSpeed's function of this name, which asks for the rank before it looks whether to print."""
    if debug or force:
        _deepspeed_print(message, debug, force)


def iter_params(module: nn.Module, recurse: bool = False) -> Iterable[Any]:
    """DeepSpeed's function of this name: parameters of a module, then those that it uses from elsewhere."""
    fixed = module.__dict__.get(_PARAMETERS)
    if fixed is None:
        return _deepspeed_iter(module, recurse)
    external: Any = module._external_params
    return itertools.chain(fixed[recurse], external.values()) if external else fixed[recurse]


def partition(
    self: Any, param_list: list[Any], force: bool = False, has_been_updated: bool = False, free_data: bool = True
) -> None:
    """`Init._partition`: where the partition is up to date and stays in memory, releasing the whole is all there is to do."""
    for param in param_list:
        shard = param.ds_tensor
        if (
            param.ds_status is ZeroParamStatus.AVAILABLE
            and shard is not None
            and shard.final_location != OffloadDeviceEnum.nvme
            and free_data
            and not has_been_updated
            and self.zero_param_process_group is None
        ):
            partition_parameters.free_param(param)
        else:
            _deepspeed_partition(self, [param], force, has_been_updated, free_data)


def release_param(self: Any, param: Any, free_data: bool = True) -> None:
    """`PartitionedParameterCoordinator.__release_param` without its wrappers."""
    if param.ds_status is ZeroParamStatus.AVAILABLE and not param.ds_active_sub_modules:
        param.partition(free_data=free_data)
        setattr(self, _COUNT, getattr(self, _COUNT) - param.ds_numel)
