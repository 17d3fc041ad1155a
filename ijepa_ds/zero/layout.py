"""Where DeepSpeed 0.19 keeps this rank's float32 master weights and Adam moments, for every ZeRO stage.

The EMA and the checkpoints are built on this one map and touch nothing else of DeepSpeed's internals. A *slot* is one
contiguous float32 buffer of master weights on this rank; a *piece* is the part of one parameter that lies in it:

    piece.name[piece.start : piece.start + piece.numel]  (flattened)  ==  master(piece.slot)[piece.offset : ...]

| kind | when | slot |
|---|---|---|
| partitioned | stage 3 | a sub-group's flat partition |
| flat | stages 1, 2 (and stage 1 with bfloat16 weights and float32 accumulation) | a parameter group's flat partition |
| copied | stage 0, bfloat16 | one parameter's float32 copy, whole on every rank |
| plain | stage 0, float32 | the parameter itself, whole on every rank |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from ijepa_ds.versions import check_deepspeed
from ijepa_ds.zero.disk import SwapFiles, mapped
from ijepa_ds.zero.publish import gather_flat, publish_partitions
from ijepa_ds.zero.support import unsupported


@dataclass(frozen=True)
class Piece:
    """Part of one parameter in one slot of this rank; all numbers count elements."""

    name: str
    start: int
    numel: int
    slot: int
    offset: int


class ZeroLayout:
    """Map of the parameters in `named` onto this rank's float32 buffers."""

    def __init__(self, engine: Any, named: dict[str, Any]) -> None:
        """Read the layout off an initialised engine.

        Args:
            engine: what `deepspeed.initialize` returned.
            named: trainable parameters by name. Order decides the order of `pieces`.

        Raises:
            ValueError: a parameter is not optimised by the engine, the engine keeps no float32 masters, or it runs in a way
                that hides them (`zero_support`).
        """
        check_deepspeed()
        reasons = unsupported(engine)
        if reasons:
            raise ValueError("this DeepSpeed engine's master weights cannot be followed:\n" + "\n".join(reasons))
        self.engine, self.optimizer, self.named = engine, engine.optimizer, named
        self.world_size, self.rank = dist.get_world_size(), dist.get_rank()
        self.pieces: list[Piece] = []
        self._keys: list[Any] = []  # of slots: an index into DeepSpeed's lists, or a parameter
        self._files = SwapFiles(self.optimizer) if getattr(self.optimizer, "swap_optimizer", False) else None
        optimizer, first = self.optimizer, next(iter(named.values()))
        if hasattr(first, "ds_id"):
            self.kind = "partitioned"
            self._map_partitioned()
        elif hasattr(optimizer, "single_partition_of_fp32_groups"):
            self.kind = "flat"
            self._flats, self._groups = optimizer.bit16_groups_flat, optimizer.round_robin_bit16_groups
            self._masters = lambda: optimizer.single_partition_of_fp32_groups
            self._map_flat()
        elif hasattr(optimizer, "fp32_groups_flat_partition"):
            self.kind = "flat"
            self._flats, self._groups = optimizer.bf16_groups_flat, optimizer.bf16_groups
            self._masters = lambda: optimizer.fp32_groups_flat_partition
            self._map_flat()
        elif hasattr(optimizer, "fp32_groups"):
            self.kind = "copied"
            pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            master = {id(low): high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}
            self._map_whole({name: master.get(id(p)) for name, p in named.items()})
        else:
            self.kind = "plain"
            known = {id(p) for group in optimizer.param_groups for p in group["params"]}
            self._map_whole({name: p if id(p) in known else None for name, p in named.items()})
        for slot in range(len(self._keys)):
            if self.master(slot).dtype != torch.float32:
                raise ValueError(
                    f"the engine's master weights are {self.master(slot).dtype}, not float32: an EMA or checkpoint of "
                    "them would lose small updates. Use bf16 with float32 masters, or float32."
                )

    @property
    def stage(self) -> int:
        """The engine's ZeRO stage."""
        return int(self.engine.zero_optimization_stage())

    @property
    def replicated(self) -> bool:
        """Whether every rank holds everything (stage 0)."""
        return self.kind in ("copied", "plain")

    @property
    def num_slots(self) -> int:
        """How many master buffers this rank has."""
        return len(self._keys)

    def _slot(self, key: Any) -> int:
        for slot, known in enumerate(self._keys):
            if known is key or (isinstance(key, int) and known == key):
                return slot
        self._keys.append(key)
        return len(self._keys) - 1

    def _map_partitioned(self) -> None:
        for name, parameter in self.named.items():
            position = self.optimizer.grad_position.get(self.optimizer.get_param_id(parameter))
            if position is None:
                raise ValueError(f"parameter '{name}' is not in the engine's optimizer: is it trainable and in a group?")
            group, offset, partition = position
            start = partition * dist.get_rank(parameter.ds_process_group)
            numel = max(0, min(partition, parameter.ds_numel - start))  # the rest of the partition is padding
            self.pieces.append(Piece(name, start, numel, self._slot(group), offset))

    def _map_flat(self) -> None:
        names = {id(p): name for name, p in self.named.items()}
        found = set()
        for index, (flat, group) in enumerate(zip(self._flats, self._groups, strict=True)):
            if not any(id(p) in names for p in group):
                continue
            slot, share = self._slot(index), self._masters()[index].numel()
            low = dist.get_rank(self.optimizer.real_dp_process_group[index]) * share
            for parameter in group:
                if id(parameter) not in names:
                    continue
                found.add(id(parameter))
                at = (parameter.data_ptr() - flat.data_ptr()) // flat.element_size()
                assert 0 <= at <= flat.numel() - parameter.numel(), "parameters are not views of their flat group"
                begin, end = max(at, low), min(at + parameter.numel(), low + share)
                if end > begin:
                    self.pieces.append(Piece(names[id(parameter)], begin - at, end - begin, slot, begin - low))
        missing = [name for name, p in self.named.items() if id(p) not in found]
        if missing:
            raise ValueError(f"parameters not in the engine's optimizer: {missing[:5]} ({len(missing)} in all)")

    def _map_whole(self, masters: dict[str, Any]) -> None:
        for name, master in masters.items():
            if master is None:
                raise ValueError(f"parameter '{name}' is not in the engine's optimizer: is it trainable and in a group?")
            self.pieces.append(Piece(name, 0, master.numel(), self._slot(master), 0))

    def holder(self, slot: int) -> Tensor:
        """The tensor that DeepSpeed's inner optimizer knows as its parameter for this slot."""
        key = self._keys[slot]
        if self.kind == "partitioned":
            return self.optimizer.fp32_partitioned_groups_flat[key]
        return self._masters()[key] if self.kind == "flat" else key

    def master(self, slot: int) -> Tensor:
        """1-D view of this slot's master weights. Fetch it anew each step: DeepSpeed may re-create it."""
        files = self._files_of(slot)
        if files:
            return files.master(self._keys[slot])
        return self.holder(slot).detach().view(-1)

    def in_files(self, slot: int) -> bool:
        """Whether DeepSpeed keeps this slot's state on disk between steps."""
        return self._files_of(slot) is not None

    def _files_of(self, slot: int) -> SwapFiles | None:
        return self._files if self._files is not None and self._files.has(self._keys[slot]) else None

    def copy_of_master(self, slot: int, name: str) -> Tensor:
        """A new buffer like this slot's master weights, with their values, where they are: in memory, or in a file `name`."""
        files = self._files_of(slot)
        return files.beside(self._keys[slot], name) if files else self.master(slot).clone()

    def scratch(self, numel: int, name: str) -> Tensor:
        """`[numel]` float32 of any content on the host: in a file where the state is, pinned on a GPU machine."""
        if self._files is not None:
            return mapped(self._files.folder / name, numel, create=True)
        return torch.empty(numel, dtype=torch.float32, pin_memory=torch.cuda.is_available())

    def view(self, buffer: Tensor, piece: Piece) -> Tensor:
        """The elements of `piece` in a buffer laid out like its slot."""
        return buffer.narrow(0, piece.offset, piece.numel)

    def _inner(self) -> torch.optim.Optimizer:
        return self.optimizer if self.kind == "plain" else self.optimizer.optimizer

    def moments(self, slot: int) -> dict[str, Tensor]:
        """Adam's state of a slot: `exp_avg`, `exp_avg_sq` (1-D views) and `step`; empty before the first step."""
        state = self._inner().state.get(self.holder(slot), {})
        files = self._files_of(slot)
        if files:
            return files.moments(self._keys[slot], state)
        return {key: value.view(-1) if key != "step" else value for key, value in state.items()}

    def forget_moments(self) -> None:
        """Adam's state as before the first step; at stage 0 with bfloat16 DeepSpeed makes one to allocate, and counts it."""
        self._inner().state.clear()
        if self._files is not None:
            self._files.forget_moments()

    def set_moments(self, slot: int, exp_avg: Tensor, exp_avg_sq: Tensor, step: int) -> None:
        """Give a slot Adam's state. The tensors are taken over, not copied; `step` gets a tensor of its own."""
        holder = self.holder(slot)
        fused = bool(self._inner().defaults.get("fused"))
        files = self._files_of(slot)
        shape = exp_avg.shape if files else holder.shape  # on disk: empty until it is read
        state = self._inner().state[holder] = {
            "step": torch.tensor(float(step), dtype=torch.float32, device=holder.device if fused else "cpu"),
            "exp_avg": exp_avg.view(shape),
            "exp_avg_sq": exp_avg_sq.view(shape),
        }
        if files:
            files.set_moments(self._keys[slot], state)

    @torch.no_grad()
    def publish_masters(self) -> None:
        """Make the model's weights follow master weights that were overwritten (start, resume)."""
        if self.kind == "partitioned":
            publish_partitions([(self.named[p.name], self._partition(self.master(p.slot), p)) for p in self.pieces])
            self.order_gathers_after_writes()
        elif self.kind == "flat":
            for slot, index in enumerate(self._keys):
                gather_flat(self._flats[index], self.master(slot), self.optimizer.real_dp_process_group[index])
        elif self.kind == "copied":
            for piece in self.pieces:
                self.named[piece.name].data.view(-1).copy_(self.master(piece.slot))

    def order_gathers_after_writes(self) -> None:
        """Make ZeRO-3's gathers, which run on a stream of their own on a GPU, wait for what was just written."""
        stream = getattr(self.optimizer.parameter_offload, "_DeepSpeedZeRoOffload__allgather_stream", None)
        if stream is not None:
            stream.wait_stream(get_accelerator().current_stream())

    def _partition(self, buffer: Tensor, piece: Piece) -> Tensor:
        """A stage-3 piece with its padding: the whole partition of the parameter."""
        return buffer.narrow(0, piece.offset, self.named[piece.name].ds_tensor.numel())
