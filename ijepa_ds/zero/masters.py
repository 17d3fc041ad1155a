"""Where DeepSpeed 0.19 keeps this rank's float32 master weights: one class for each kind of optimizer.

| class | kind | ZeRO stage | slot |
|---|---|---|---|
| `Partitioned` | partitioned | 3 | a sub-group's flat partition |
| `Flat` | flat | 1, 2 | a parameter group's flat partition |
| `FlatBF16` | flat | 1 with bfloat16 weights and float32 accumulation | a parameter group's flat partition |
| `Copied` | copied | 0 with bfloat16 weights | a parameter's float32 copy, whole on every rank |
| `Plain` | plain | 0 with float32 weights | the parameter itself, whole on every rank |

A *slot* is one contiguous float32 buffer on this rank; a *piece* is the part of one parameter in it (`Piece`). The attributes
of DeepSpeed's optimizers that are read here are not its API: `versions.check_deepspeed` pins the version.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor

from ijepa_ds.errors import UserError
from ijepa_ds.zero.publish import gather_flat, own_share, publish_partitions


@dataclass(frozen=True)
class Piece:
    """Part of one parameter in one slot of this rank; all numbers count elements.

    `name[start : start + numel]` (flattened) is `master(slot)[offset : offset + numel]`.
    """

    name: str
    start: int
    numel: int
    slot: int
    offset: int


class Masters(ABC):
    """The master weights of one optimizer, and the model weights that follow them.

    Attributes:
        kind: name of the layout.
        replicated: whether every rank holds every parameter whole (stage 0).
        pieces: what this rank holds of each parameter.
        keys: for each slot, an index into DeepSpeed's lists, or the master tensor itself.
    """

    kind: str
    replicated = False

    def __init__(self, optimizer: Any, named: Mapping[str, Any]) -> None:
        """Map the parameters.

        Args:
            optimizer: `engine.optimizer`.
            named: trainable parameters by name.

        Raises:
            ValueError: a parameter is not in the optimizer.
        """
        self.optimizer, self.named = optimizer, named
        self.pieces: list[Piece] = []
        self.keys: list[Any] = []
        self._map()

    @abstractmethod
    def _map(self) -> None:
        """Fill `pieces` and `keys`."""

    @abstractmethod
    def holder(self, slot: int) -> Tensor:
        """The tensor that DeepSpeed's inner optimizer has as its parameter for this slot."""

    @abstractmethod
    def bind(self, weights: Mapping[str, Any]) -> Any:
        """Prepare weights for `write`.

        Args:
            weights: parameters with the names and shapes of the mapped ones: these themselves, or those of a teacher.

        Returns:
            The weights in the form that `write` and `storage` take.
        """

    @abstractmethod
    def write(self, buffers: Sequence[Tensor | None], bound: Any) -> None:
        """Copy buffers into weights, in the weights' type; every rank calls it.

        Args:
            buffers: one for each slot, laid out like the master weights; None if the weights have the values already.
            bound: what `bind` returned.
        """

    def storage(self, slot: int, bound: Any) -> Tensor | None:
        """The part of bound weights that corresponds to a slot, 1-D; None if it is not one tensor."""
        return None

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The PyTorch optimizer that DeepSpeed wraps."""
        return self.optimizer.optimizer

    def _slot(self, key: int) -> int:
        if key not in self.keys:
            self.keys.append(key)
        return self.keys.index(key)


class Partitioned(Masters):
    """Stage 3: sub-groups of partitioned parameters."""

    kind = "partitioned"

    def _map(self) -> None:
        for name, parameter in self.named.items():
            position = self.optimizer.grad_position.get(self.optimizer.get_param_id(parameter))
            if position is None:
                raise _not_optimised([name])
            group, offset, partition = position
            start = partition * dist.get_rank(parameter.ds_process_group)
            numel = max(0, min(partition, parameter.ds_numel - start))  # the rest of the partition is padding
            self.pieces.append(Piece(name, start, numel, self._slot(group), offset))

    def holder(self, slot: int) -> Tensor:
        """The sub-group's flat partition."""
        return self.optimizer.fp32_partitioned_groups_flat[self.keys[slot]]

    def bind(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters by name."""
        return weights

    def write(self, buffers: Sequence[Tensor | None], bound: Mapping[str, Any]) -> None:
        """Copy into the local partitions, padding included; without communication."""
        pairs = []
        for piece in self.pieces:
            buffer = buffers[piece.slot]
            if buffer is not None:
                padded = self.named[piece.name].ds_tensor.numel()
                pairs.append((bound[piece.name], buffer.narrow(0, piece.offset, padded)))
        publish_partitions(pairs)
        # On a GPU, ZeRO-3 gathers on a stream of its own: it must wait for these copies.
        stream = getattr(self.optimizer.parameter_offload, "_DeepSpeedZeRoOffload__allgather_stream", None)
        if stream is not None:
            stream.wait_stream(get_accelerator().current_stream())


class Flat(Masters):
    """Stages 1 and 2: each rank has an equal share of every parameter group's flat buffer."""

    kind = "flat"

    @property
    def _flats(self) -> list[Tensor]:
        """Flat model weights of each group; the parameters are views of them."""
        return self.optimizer.bit16_groups_flat

    @property
    def _groups(self) -> list[list[Any]]:
        """Parameters of each group, in the order of the flat buffer."""
        return self.optimizer.round_robin_bit16_groups

    @property
    def _shares(self) -> list[Tensor]:
        """This rank's float32 share of each group."""
        return self.optimizer.single_partition_of_fp32_groups

    def _map(self) -> None:
        names = {id(p): name for name, p in self.named.items()}
        found = set()
        for index, group in enumerate(self._groups):
            if not any(id(p) in names for p in group):
                continue
            slot, share = self._slot(index), self._shares[index].numel()
            low = dist.get_rank(self._ranks(slot)) * share
            for parameter in group:
                if id(parameter) not in names:
                    continue
                found.add(id(parameter))
                at = self._position(index, parameter)
                begin, end = max(at, low), min(at + parameter.numel(), low + share)
                if end > begin:
                    self.pieces.append(Piece(names[id(parameter)], begin - at, end - begin, slot, begin - low))
        missing = [name for name, p in self.named.items() if id(p) not in found]
        if missing:
            raise _not_optimised(missing)

    def _position(self, index: int, parameter: Tensor) -> int:
        """First element of a parameter in its group's flat buffer."""
        flat = self._flats[index]
        at = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
        assert 0 <= at <= flat.numel() - parameter.numel(), "parameters are not views of their flat group"
        return at

    def _ranks(self, slot: int) -> Any:
        """The process group that shares a slot's flat buffer."""
        return self.optimizer.real_dp_process_group[self.keys[slot]]

    def holder(self, slot: int) -> Tensor:
        """This rank's share of the group."""
        return self._shares[self.keys[slot]]

    def bind(self, weights: Mapping[str, Any]) -> list[Tensor]:
        """One flat buffer for each slot. Weights other than the mapped ones move into buffers of the same layout.

        Raises:
            ValueError: a group also holds parameters that are not mapped.
        """
        if all(weights[name] is p for name, p in self.named.items()):
            return [self._flats[index] for index in self.keys]
        names = {id(p): name for name, p in self.named.items()}
        flats = []
        for index in self.keys:
            group = self._groups[index]
            foreign = sum(id(p) not in names for p in group)
            if foreign:
                raise UserError(
                    f"optimizer group {index} holds {foreign} parameters that are not the student's beside its own: "
                    "give the student's parameters groups of their own, so that the teacher can share their layout"
                )
            flat = torch.zeros_like(self._flats[index])
            for p in group:
                view = flat.narrow(0, self._position(index, p), p.numel()).view(p.shape)
                weights[names[id(p)]].data = view
            flats.append(flat)
        return flats

    def write(self, buffers: Sequence[Tensor | None], bound: list[Tensor]) -> None:
        """One all-gather in the weights' type for each slot."""
        for slot, (flat, buffer) in enumerate(zip(bound, buffers, strict=True)):
            gather_flat(flat, buffer, self._ranks(slot))

    def storage(self, slot: int, bound: list[Tensor]) -> Tensor:
        """This rank's share of the flat weights."""
        return own_share(bound[slot], self.holder(slot).numel(), self._ranks(slot))


class FlatBF16(Flat):
    """Stage 1 with bfloat16 weights and float32 gradient accumulation: the same layout under other names."""

    @property
    def _flats(self) -> list[Tensor]:
        return self.optimizer.bf16_groups_flat

    @property
    def _groups(self) -> list[list[Any]]:
        return self.optimizer.bf16_groups

    @property
    def _shares(self) -> list[Tensor]:
        return self.optimizer.fp32_groups_flat_partition


class _Whole(Masters):
    """Stage 0: a slot for each parameter, whole on every rank."""

    replicated = True

    @abstractmethod
    def _master(self) -> dict[int, Tensor]:
        """The master weights of every optimised parameter, by the parameter's `id`."""

    def _map(self) -> None:
        masters = self._master()
        for slot, (name, parameter) in enumerate(self.named.items()):
            if id(parameter) not in masters:
                raise _not_optimised([name])
            master = masters[id(parameter)]
            self.keys.append(master)
            self.pieces.append(Piece(name, 0, master.numel(), slot, 0))

    def holder(self, slot: int) -> Tensor:
        """The parameter's master weights."""
        return self.keys[slot]

    def bind(self, weights: Mapping[str, Any]) -> list[Any]:
        """The parameters in the order of the slots."""
        return [weights[piece.name] for piece in self.pieces]

    def write(self, buffers: Sequence[Tensor | None], bound: list[Any]) -> None:
        """One multi-tensor copy; without communication."""
        pairs = [(p.data.view(-1), buffer) for p, buffer in zip(bound, buffers, strict=True) if buffer is not None]
        if pairs:
            torch._foreach_copy_([weight for weight, _ in pairs], [buffer for _, buffer in pairs])

    def storage(self, slot: int, bound: list[Any]) -> Tensor | None:
        """The parameter's values, if they are contiguous."""
        values = bound[slot].data
        return values.view(-1) if values.is_contiguous() else None


class Copied(_Whole):
    """Stage 0 with bfloat16 weights: DeepSpeed keeps a float32 copy of each parameter."""

    kind = "copied"

    def _master(self) -> dict[int, Tensor]:
        pairs = zip(self.optimizer.fp16_groups, self.optimizer.fp32_groups, strict=True)
        return {id(low): high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}


class Plain(_Whole):
    """Stage 0 with float32 weights: the parameters are their own master weights."""

    kind = "plain"

    def _master(self) -> dict[int, Tensor]:
        return {id(p): p for group in self.optimizer.param_groups for p in group["params"]}

    @property
    def inner(self) -> torch.optim.Optimizer:
        """The optimizer itself: nothing wraps it."""
        return self.optimizer


_OF: tuple[tuple[type, type[Masters]], ...] = (
    (DeepSpeedZeroOptimizer_Stage3, Partitioned),
    (DeepSpeedZeroOptimizer, Flat),
    (BF16_Optimizer, FlatBF16),
    (FP16_UnfusedOptimizer, Copied),
)


def masters_of(optimizer: Any, named: Mapping[str, Any]) -> Masters:
    """Choose the class for DeepSpeed's optimizer and map `named` with it; `Plain` for an optimizer that it does not wrap."""
    chosen = next((ours for theirs, ours in _OF if isinstance(optimizer, theirs)), Plain)
    return chosen(optimizer, named)


def _not_optimised(names: list[str]) -> UserError:
    more = f" ({len(names)} in all)" if len(names) > 1 else ""
    return UserError(f"parameter '{names[0]}'{more} is not in the engine's optimizer: is it trainable and in a group?")
