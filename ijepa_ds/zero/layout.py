"""Map of the trained parameters onto this rank's float32 master weights and Adam moments, at every ZeRO stage.

EMA and checkpoints use this map and touch nothing else of DeepSpeed's internals. `masters.py` has the kinds of layout, and
explains slots and pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.errors import UserError
from ijepa_ds.model.flat import parts_of, published
from ijepa_ds.versions import check_deepspeed
from ijepa_ds.zero.disk import SwapFiles, mapped
from ijepa_ds.zero.masters import Piece, masters_of
from ijepa_ds.zero.support import unsupported

__all__ = ["Piece", "ZeroLayout"]


class ZeroLayout:
    """Map of named parameters onto this rank's float32 buffers.

    Attributes:
        kind: kind of layout (`masters.py`).
        replicated: whether every rank holds all parameters (stage 0).
        pieces: the parts of published parameters on this rank.
        shapes: the shape of every published parameter, by name.
        named: the engine's parameters, which may hold several published ones (`model.flat`).
    """

    def __init__(self, engine: Any, named: dict[str, Any]) -> None:
        """Read the layout of an initialised engine.

        Args:
            engine: what `deepspeed.initialize` returned.
            named: trainable parameters by name; `pieces` follow their order.

        Raises:
            ValueError: a parameter is not optimised by the engine, or the engine's master weights are not float32 or not
                accessible (`zero.support`).
        """
        check_deepspeed()
        reasons = unsupported(engine)
        if reasons:
            raise UserError("this DeepSpeed engine's master weights cannot be followed:\n" + "\n".join(reasons))
        self.engine, self.named = engine, named
        self._masters = masters_of(engine.optimizer, named)
        self.kind, self.replicated = self._masters.kind, self._masters.replicated
        self.pieces = [part for piece in self._masters.pieces for part in _parts(piece, named[piece.name])]
        self.shapes = {part.name: part.shape for part in published(named)}
        self._files = SwapFiles(engine.optimizer) if getattr(engine.optimizer, "swap_optimizer", False) else None
        for slot in range(self.num_slots):
            if self.master(slot).dtype != torch.float32:
                raise UserError(
                    f"the engine's master weights are {self.master(slot).dtype}, not float32: an EMA or checkpoint of "
                    "them would lose small updates. Use bf16 with float32 masters, or float32."
                )

    @property
    def stage(self) -> int:
        """The engine's ZeRO stage."""
        return int(self.engine.zero_optimization_stage())

    @property
    def num_slots(self) -> int:
        """Number of master buffers on this rank."""
        return len(self._masters.keys)

    def holder(self, slot: int) -> Tensor:
        """The tensor that DeepSpeed's inner optimizer has as its parameter for this slot."""
        return self._masters.holder(slot)

    def master(self, slot: int) -> Tensor:
        """Master weights of a slot, a 1-D view. Valid for one step: DeepSpeed may re-create the buffer."""
        files = self._files_of(slot)
        if files:
            return files.master(self._masters.keys[slot])
        return self.holder(slot).detach().view(-1)

    def in_files(self, slot: int) -> bool:
        """Whether DeepSpeed keeps this slot's state on disk between steps."""
        return self._files_of(slot) is not None

    def _files_of(self, slot: int) -> SwapFiles | None:
        return self._files if self._files is not None and self._files.has(self._masters.keys[slot]) else None

    def copy_of_master(self, slot: int, name: str) -> Tensor:
        """A copy of a slot's master weights: in memory, or in a file called `name` if they are in a file."""
        files = self._files_of(slot)
        return files.beside(self._masters.keys[slot], name) if files else self.master(slot).clone()

    def scratch(self, numel: int, name: str) -> Tensor:
        """Uninitialised float32 `[numel]` on the host: pinned on a GPU machine; in a file if the state is on disk."""
        if self._files is not None:
            return mapped(self._files.folder / name, numel, create=True)
        return torch.empty(numel, dtype=torch.float32, pin_memory=torch.cuda.is_available())

    def view(self, buffer: Tensor, piece: Piece) -> Tensor:
        """The elements of `piece` in a buffer laid out like its slot."""
        return buffer.narrow(0, piece.offset, piece.numel)

    def moments(self, slot: int) -> dict[str, Tensor]:
        """Adam's state of a slot: `exp_avg`, `exp_avg_sq` (1-D views) and `step`; empty before the first step."""
        state = self._masters.inner.state.get(self.holder(slot), {})
        files = self._files_of(slot)
        if files:
            return files.moments(self._masters.keys[slot], state)
        return {key: value.view(-1) if key != "step" else value for key, value in state.items()}

    def forget_moments(self) -> None:
        """Clear Adam's state; at stage 0 with bfloat16 DeepSpeed takes one step to allocate it, and counts that step."""
        self._masters.inner.state.clear()
        if self._files is not None:
            self._files.forget_moments()

    def set_moments(self, slot: int, exp_avg: Tensor, exp_avg_sq: Tensor, step: int) -> None:
        """Set Adam's state of a slot. The moments are used without a copy; each slot gets its own `step` tensor."""
        holder = self.holder(slot)
        fused = bool(self._masters.inner.defaults.get("fused"))
        files = self._files_of(slot)
        shape = exp_avg.shape if files else holder.shape  # a holder on disk is empty until DeepSpeed reads it
        state = self._masters.inner.state[holder] = {
            "step": torch.tensor(float(step), dtype=torch.float32, device=holder.device if fused else "cpu"),
            "exp_avg": exp_avg.view(shape),
            "exp_avg_sq": exp_avg_sq.view(shape),
        }
        if files:
            files.set_moments(self._masters.keys[slot], state)

    def bind(self, weights: Mapping[str, Any]) -> Any:
        """Prepare parameters with the names and shapes of the mapped ones for `publish` and `storage`.

        With flat groups (stages 1 and 2) they move into buffers laid out like the mapped parameters.

        Raises:
            ValueError: an optimizer group also holds parameters that are not mapped.
        """
        return self._masters.bind(weights)

    def storage(self, slot: int, bound: Any) -> Tensor | None:
        """The values in bound parameters that correspond to this slot, 1-D; None if they are not one tensor on this rank."""
        return self._masters.storage(slot, bound)

    @torch.no_grad()
    def publish(self, buffers: Sequence[Tensor | None], bound: Any) -> None:
        """Copy buffers into bound parameters, in the parameters' type; every rank calls it.

        Args:
            buffers: one for each slot, laid out like the master weights; None if the parameters have the values already.
            bound: what `bind` returned.
        """
        self._masters.write(buffers, bound)

    def publish_masters(self) -> None:
        """Update the model's weights after master weights were overwritten (at start and on resume)."""
        if self.kind != "plain":  # there the parameters are the master weights
            self.publish([self.master(slot) for slot in range(self.num_slots)], self.bind(self.named))


def _parts(piece: Piece, parameter: Any) -> list[Piece]:
    """A piece of a parameter as pieces of the published parameters in it; pieces without elements are left out."""
    found = []
    for part in parts_of(piece.name, parameter):
        begin = max(piece.start, part.start)
        end = min(piece.start + piece.numel, part.start + part.numel)
        if end > begin:
            offset = piece.offset + begin - piece.start
            found.append(Piece(part.name, begin - part.start, end - begin, piece.slot, offset))
    return found
