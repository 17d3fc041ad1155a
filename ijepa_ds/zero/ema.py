"""A float32 exponential moving average of a DeepSpeed engine's weights, sharded exactly like its master weights.

Useful alone, to anyone who trains a teacher under DeepSpeed:

    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)  # model.student, model.teacher
    ema = ShardedEMA(engine, model.student, model.teacher)
    ...
    engine.step()
    if engine.was_step_applied():
        ema.update(momentum)

The state costs 4 bytes x parameters / ranks from stage 1 on, and nothing at stages 0 to 2 where the teacher is float32: the
average is then this rank's part of the teacher's own weights. Under ZeRO-3 an update moves nothing between ranks; under
stages 1 and 2 it costs one all-gather of the teacher, in the teacher's type, for each parameter group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ijepa_ds.zero.layout import Piece, ZeroLayout
from ijepa_ds.zero.publish import gather_flat, own_share, publish_partitions


class ShardedEMA:
    """Keeps `teacher` at the moving average of `student`'s float32 master weights."""

    @torch.no_grad()
    def __init__(self, engine: Any, student: nn.Module, teacher: nn.Module) -> None:
        """Start the average at the student's present master weights, and publish it to the teacher.

        Args:
            engine: the initialised DeepSpeed engine that optimises `student`.
            student: module inside the engine's model, trainable. From stage 1 on with flat groups (stages 1 and 2), its
                parameters must be in optimizer groups of their own.
            teacher: module of the same parameters (names and shapes) inside the engine's model, frozen.

        Raises:
            ValueError: names, shapes or `requires_grad` do not match; parameters are tied; groups are mixed; the engine
                hides its master weights or has none in float32 (`zero_support`).
        """
        named = {name: p for name, p in student.named_parameters() if p.requires_grad}
        self.targets = dict(teacher.named_parameters())
        _check_pairs(named, self.targets, student)
        self.layout = ZeroLayout(engine, named)
        if self.layout.kind == "flat":
            self._flat_targets = self._share_flat_buffers()
        homes = [self._home(slot) for slot in range(self.layout.num_slots)]
        self._shared = [home is not None for home in homes]  # of slots: the teacher's own weights are the average
        self.average = [
            self.layout.copy_of_master(slot, "average") if home is None else home.copy_(self.layout.master(slot))
            for slot, home in enumerate(homes)
        ]
        self.publish()

    @property
    def pieces(self) -> list[Piece]:
        """What this rank holds of each parameter; `average[piece.slot]` is laid out like the master weights."""
        return self.layout.pieces

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Average <- momentum * average + (1 - momentum) * master weights; then publish to the teacher.

        Call it after an applied optimizer step only.
        """
        masters = [self.layout.master(slot) for slot in range(self.layout.num_slots)]
        torch._foreach_lerp_(self.average, masters, 1.0 - momentum)
        self.publish()

    @torch.no_grad()
    def distance(self) -> Tensor:
        """[sum of (average - master)^2, sum of master^2] over what this rank holds; stays on the device.

        Their ratio, summed over the ranks first, is the squared relative distance of teacher and student.
        """
        masters = [self.layout.master(slot) for slot in range(self.layout.num_slots)]
        apart = [(average - master).square().sum() for average, master in zip(self.average, masters, strict=True)]
        return torch.stack([torch.stack(apart).sum(), torch.stack([m.square().sum() for m in masters]).sum()])

    @torch.no_grad()
    def publish(self) -> None:
        """Write the average into the teacher's weights, in their type."""
        layout = self.layout
        if layout.kind == "partitioned":
            publish_partitions([(self.targets[p.name], layout._partition(self.average[p.slot], p)) for p in layout.pieces])
            layout.order_gathers_after_writes()
        elif layout.kind == "flat":
            for slot, index in enumerate(layout._keys):
                group = layout.optimizer.real_dp_process_group[index]
                gather_flat(self._flat_targets[slot], None if self._shared[slot] else self.average[slot], group)
        else:
            apart = [p for p in layout.pieces if not self._shared[p.slot]]
            if apart:
                torch._foreach_copy_([self.targets[p.name].data.view(-1) for p in apart], [self.average[p.slot] for p in apart])

    def _home(self, slot: int) -> Tensor | None:
        """Weights of the teacher, 1-D, that can be this slot's average themselves: float32, laid out and placed like it.

        The average then takes no memory of its own, and publishing it no copy.
        """
        layout, home = self.layout, None
        if layout.in_files(slot):
            return None
        master = layout.master(slot)
        if layout.kind == "flat":
            group = layout.optimizer.real_dp_process_group[layout._keys[slot]]
            home = own_share(self._flat_targets[slot], master.numel(), group)
        elif layout.replicated:
            (name,) = [piece.name for piece in layout.pieces if piece.slot == slot]
            target = self.targets[name].data
            home = target.view(-1) if target.is_contiguous() else None
        fits = home is not None and home.dtype == master.dtype and home.device == master.device
        return home if fits else None

    def _share_flat_buffers(self) -> list[Tensor]:
        """Move the teacher's weights into flat buffers laid out like the student's, one a slot."""
        layout, flats = self.layout, []
        names = {id(p): name for name, p in layout.named.items()}
        for index in layout._keys:
            source, group = layout._flats[index], layout._groups[index]
            foreign = sum(id(p) not in names for p in group)
            if foreign:
                raise ValueError(
                    f"optimizer group {index} holds {foreign} parameters that are not the student's beside its own: "
                    "give the student's parameters groups of their own, so that the teacher can share their layout"
                )
            flat = torch.zeros_like(source)
            for parameter in group:
                at = (parameter.data_ptr() - source.data_ptr()) // source.element_size()
                target = self.targets[names[id(parameter)]]
                target.data = flat.narrow(0, at, parameter.numel()).view(parameter.shape)
            flats.append(flat)
        return flats


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
            problems.append(f"'{name}' is one tensor in both: the teacher needs weights of its own")
        elif theirs.requires_grad:
            problems.append(f"'{name}' of the teacher is trainable: call teacher.requires_grad_(False) first")
    if problems:
        more = f"\n... and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError("this teacher cannot follow this student:\n" + "\n".join(problems[:10]) + more)


def _tied(module: nn.Module) -> list[str]:
    """Names of parameters that are one tensor, a text for each tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(f"'{name}'")
    return [" and ".join(group) for group in names.values() if len(group) > 1]
