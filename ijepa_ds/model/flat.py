"""A block whose parameters are two tensors: what weight decay applies to, and what it does not apply to.

DeepSpeed's hooks cost host time once a parameter (docs/host-time.md), and a block has twelve and more. In training, each
block holds two flat parameters, `decayed` and `undecayed`. Its modules compute with views of them (*parts*), which have the
names and shapes of the parameters that timm and the published checkpoints have. All that leaves a run has these names.

ZeRO-3 empties a parameter between its passes. A view that autograd saves in the forward pass would keep the gathered weights
in memory until the backward pass. So the position in the flat parameter is saved instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_PARTS = "ijepa_ds_parts"  # attribute of a flat parameter
_FIELDS = "_ijepa_ds_fields"  # attribute of a flat block: for each flat parameter, the places of its views


class Part(NamedTuple):
    """A published parameter, and where it begins in the flattened tensor that holds it."""

    name: str
    start: int
    shape: torch.Size

    @property
    def numel(self) -> int:
        """Its elements."""
        return math.prod(self.shape)


def is_decayed(name: str, shape: tuple[int, ...] | torch.Size) -> bool:
    """Whether weight decay applies to a parameter: not to biases and 1-D parameters, but to the mask token (3-D)."""
    return len(shape) > 1 and not name.endswith(".bias")


def parts_of(name: str, parameter: Any) -> list[Part]:
    """What a parameter of a training model holds: its parts, or itself if it is not flat.

    Args:
        name: in the model, e.g. `encoder.blocks.3.decayed`.
        parameter: whole, or partitioned by ZeRO-3.

    Returns:
        Parts with published names, e.g. `encoder.blocks.3.attn.qkv.weight`, in ascending order.
    """
    parts: list[Part] | None = getattr(parameter, _PARTS, None)
    if parts is None:
        return [Part(name, 0, torch.Size(getattr(parameter, "ds_shape", parameter.shape)))]
    prefix = name.rpartition(".")[0]
    return [part._replace(name=f"{prefix}.{part.name}") for part in parts]


def published(named: Mapping[str, Any]) -> Iterator[Part]:
    """The parts of all parameters, in order."""
    for name, parameter in named.items():
        yield from parts_of(name, parameter)


def flatten(block: nn.Module, forget_weights: bool) -> None:
    """Replace the parameters of a block by two, in place; values stay.

    Args:
        block: a timm block. Its forward function must not be called with other weights later (`load_state_dict`).
        forget_weights: whether the weights may be emptied between the forward and the backward pass (ZeRO-3 without
            activation checkpointing, which saves no weights).
    """
    named = dict(block.named_parameters())
    fields = []
    for flat_name, decay in (("decayed", True), ("undecayed", False)):
        members = {name: p for name, p in named.items() if is_decayed(name, p.shape) == decay}
        trained = all(p.requires_grad for p in members.values())
        flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in members.values()]), requires_grad=trained)
        parts, places, start = [], [], 0
        for name, parameter in members.items():
            parts.append(Part(name, start, parameter.shape))
            start += parameter.numel()
            owner = block.get_submodule(name.rpartition(".")[0])
            field = name.rpartition(".")[2]
            delattr(owner, field)
            object.__setattr__(owner, field, None)
            places.append((owner, field, tuple(parameter.shape)))
        setattr(flat, _PARTS, parts)
        fields.append((flat_name, tuple(part.numel for part in parts), tuple(places)))
        block.register_parameter(flat_name, flat)
    object.__setattr__(block, _FIELDS, (tuple(fields), forget_weights))
    block.forward = MethodType(_forward, block)  # type: ignore[method-assign]


def materialise(model: nn.Module) -> None:
    """Allocate the parameters of a model on `meta`, module by module, without values.

    Inside `deepspeed.zero.Init` they are partitioned at once, so a rank never holds more than one module's whole weights.
    """
    for module in model.modules():
        meta = dict(module.named_parameters(recurse=False))
        if not meta:
            continue
        real = _Holder({name: parameter.shape for name, parameter in meta.items()})
        for name, parameter in meta.items():
            new = getattr(real, name)
            new.requires_grad_(parameter.requires_grad)
            if hasattr(parameter, _PARTS):
                setattr(new, _PARTS, getattr(parameter, _PARTS))
            module.register_parameter(name, new)


class _Holder(nn.Module):
    """A module of its own for new parameters, because `zero.Init` partitions what a module has after `__init__`."""

    def __init__(self, shapes: Mapping[str, torch.Size]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))


def _forward(block: Any, *inputs: Tensor) -> Tensor:
    """The block's own forward function, with views in the places of its parameters."""
    fields, forget_weights = getattr(block, _FIELDS)
    flats = [getattr(block, name) for name, _, _ in fields]
    if torch.compiler.is_compiling():
        return _compiled(block, fields, flats, inputs)
    forgets = forget_weights and torch.is_grad_enabled()
    try:
        for flat, (_, sizes, places) in zip(flats, fields, strict=True):
            for view, (owner, field, shape) in zip(flat.split(sizes), places, strict=True):
                owner.__dict__[field] = view.view(shape)  # without the checks of `Module.__setattr__`
        with _save_positions(flats) if forgets else nullcontext():
            return type(block).forward(block, *inputs)
    finally:  # activation checkpointing ends a forward pass by an exception
        for _, _, places in fields:
            for owner, field, _ in places:
                owner.__dict__[field] = None  # a view would keep the gathered weights


def _compiled(block: Any, fields: Any, flats: list[Any], inputs: tuple[Tensor, ...]) -> Tensor:
    """The same for the compiler."""
    for flat, (_, sizes, places) in zip(flats, fields, strict=True):
        for view, (owner, field, shape) in zip(_Slices.apply(flat, sizes), places, strict=True):
            setattr(owner, field, view.view(shape))
    result = type(block).forward(block, *inputs)
    for _, _, places in fields:
        for owner, field, _ in places:
            setattr(owner, field, None)
    return result


class _Slices(torch.autograd.Function):
    """`Tensor.split` in operations that the compiler repeats in the backward pass, instead of saving the views."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Cut `flat: [numel]` into views of `sizes` elements."""
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return tuple(flat.narrow(0, start, size) for start, size in zip(starts, sizes, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """One concatenation."""
        return torch.cat(gradients), None


def _save_positions(flats: list[Any]) -> Any:
    """A context in which autograd saves positions in flat parameters instead of views of them."""
    by_storage = {flat.untyped_storage().data_ptr(): flat for flat in flats}

    def pack(tensor: Tensor) -> Any:
        flat = by_storage.get(tensor.untyped_storage().data_ptr())
        if flat is None:
            return tensor.detach()  # the tensor itself would refer to its own graph
        return flat, tensor.shape, tensor.stride(), tensor.storage_offset() - flat.storage_offset()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        flat, shape, stride, offset = packed
        return flat.data.as_strided(shape, stride, flat.storage_offset() + offset)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
