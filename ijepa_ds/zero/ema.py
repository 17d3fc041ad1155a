"""A float32 exponential moving average (EMA) of a DeepSpeed engine's weights, sharded like its master weights.

It can be used on its own, to train any teacher under DeepSpeed:

    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)  # model.student, model.teacher
    ema = ShardedEMA(engine, model.student, model.teacher)
    ...
    engine.step()
    if engine.was_step_applied():
        ema.update(momentum)

Memory on each rank is 4 bytes x parameters / ranks from stage 1 on. At stages 0 to 2 a float32 teacher needs none: its own
weights hold the average. An update communicates nothing at stage 3; at stages 1 and 2 it costs one all-gather of the teacher,
in the teacher's type, for each parameter group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ijepa_ds.errors import UserError
from ijepa_ds.zero.layout import Piece, ZeroLayout


class ShardedEMA:
    """Sets `teacher` to the moving average of the float32 master weights of `student`."""

    @torch.no_grad()
    def __init__(self, engine: Any, student: nn.Module, teacher: nn.Module) -> None:
        """Set the average to the current master weights of the student, and publish it to the teacher.

        Args:
            engine: the initialised DeepSpeed engine that optimises `student`.
            student: trainable module inside the engine's model. At stages 1 and 2 its parameters must be in optimizer
                groups of their own.
            teacher: frozen module inside the engine's model, with the same parameter names and shapes.

        Raises:
            ValueError: names, shapes or `requires_grad` do not match; parameters are tied; groups are mixed; the master
                weights are not accessible or not float32 (`zero.support`).
        """
        named = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self.targets = dict(teacher.named_parameters())
        _check_pairs(named, self.targets, student)
        self.layout = layout = ZeroLayout(engine, named)
        self._teacher = layout.bind(self.targets)
        self._aliased = [self.can_alias_teacher(slot) for slot in range(layout.num_slots)]
        self.average = []
        for slot, aliased in enumerate(self._aliased):
            values = layout.storage(slot, self._teacher) if aliased else None
            if values is None:
                self.average.append(layout.copy_of_master(slot, "average"))
            else:
                self.average.append(values.copy_(layout.master(slot)))
        self.publish()

    @property
    def pieces(self) -> list[Piece]:
        """The parts of parameters on this rank; `average[piece.slot]` is laid out like the master weights."""
        return self.layout.pieces

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Set average = momentum * average + (1 - momentum) * master weights, and publish it to the teacher.

        Call it only after an optimizer step that was applied.
        """
        masters = [self.layout.master(slot) for slot in range(self.layout.num_slots)]
        torch._foreach_lerp_(self.average, masters, 1.0 - momentum)
        self.publish()

    @torch.no_grad()
    def distance(self) -> Tensor:
        """Sums for the relative distance of teacher and student, float32 `[2]` on the device.

        They are sum((average - master)^2) and sum(master^2) over this rank's elements. Summed over the ranks, their ratio is
        the squared relative distance.
        """
        masters = [self.layout.master(slot) for slot in range(self.layout.num_slots)]
        apart = [(average - master).square().sum() for average, master in zip(self.average, masters, strict=True)]
        return torch.stack([torch.stack(apart).sum(), torch.stack([m.square().sum() for m in masters]).sum()])

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the average into the teacher's weights, in their type."""
        pairs = zip(self.average, self._aliased, strict=True)
        self.layout.publish([None if aliased else average for average, aliased in pairs], self._teacher)

    def can_alias_teacher(self, slot: int) -> bool:
        """Whether the teacher's own weights can hold a slot's average: float32, in one tensor, on the same device.

        The average then takes no memory of its own. One slot, two ranks, stages 1 and 2:

            student, flat        [ share of rank 0 | share of rank 1 ]   weights, whole on every rank
            master on rank 1                       [ float32         ]
            teacher, flat        [ share of rank 0 | share of rank 1 ]   weights, whole on every rank
            average on rank 1                      [ this view       ]   if the teacher is float32; else a buffer of its own

        At stage 0 the slot is one parameter, and the view is all of it. At stage 3 the teacher's partitions are separate
        tensors, so that one view cannot cover a slot.
        """
        if self.layout.in_files(slot):
            return False
        values, master = self.layout.storage(slot, self._teacher), self.layout.master(slot)
        return values is not None and (values.dtype, values.device) == (master.dtype, master.device)


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _check_pairs(named: dict[str, nn.Parameter], targets: dict[str, nn.Parameter], student: nn.Module) -> None:
    problems = [f"{names} of the student are tied (one tensor under several names)" for names in _tied(student)]
    if not named:
        problems.append("the student has no trainable parameter")
    for name in sorted(named.keys() ^ targets.keys()):
        problems.append(f"'{name}' is only in the {'student' if name in named else 'teacher'}")
    for name in sorted(named.keys() & targets.keys()):
        ours, theirs = named[name], targets[name]
        if hasattr(ours, "ds_id") and _shape(theirs) == (0,):
            problems.append(
                f"'{name}' is empty in the teacher: a copy.deepcopy of a model that ZeRO-3 has partitioned has no values; "
                "build the teacher by its constructor, under deepspeed.zero.Init like the student"
            )
        elif _shape(ours) != _shape(theirs):
            problems.append(f"'{name}' is {_shape(ours)} in the student, {_shape(theirs)} in the teacher")
        if theirs is ours:
            problems.append(f"'{name}' is the same tensor in both: the teacher needs weights of its own")
        elif theirs.requires_grad:
            problems.append(f"'{name}' of the teacher is trainable: call teacher.requires_grad_(False) first")
    if problems:
        more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError("this teacher cannot follow this student:\n" + "\n".join(problems[:10]) + more)


def _tied(module: nn.Module) -> list[str]:
    """For each tensor with several names, those names in one text."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(f"'{name}'")
    return [" and ".join(group) for group in names.values() if len(group) > 1]
