"""Counts the traffic between ranks: every collective that reaches torch's dispatcher."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TWICE = {"allreduce", "allreduce_coalesced"}  # a reduce-scatter and an all-gather


class Traffic(TorchDispatchMode):
    """Context manager that counts collectives by name: calls, and bytes of the larger of result and input.

    A rank sends and receives (W - 1) / W of these bytes, an all-reduce twice that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operation, then run it."""
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            sides = [sum(t.nbytes for t in tree_leaves(a) if isinstance(t, Tensor)) for a in args]
            self.calls[name] += 1
            self.bytes[name] += max(sides, default=0)
        return func(*args, **(kwargs or {}))

    @property
    def moved(self) -> int:
        """Bytes of all collectives; all-reduces count twice."""
        return sum(count * (2 if name in TWICE else 1) for name, count in self.bytes.items())


def least_bytes(stage: int, encoder: int, predictor: int, width: int) -> int:
    """The fewest bytes a step can move (`Traffic.moved`), without accumulation.

    Gradients once to their owners, weights once to every rank that needs them: after the step at stages 1 and 2; at stage 3 for
    every pass (target, context encoder and predictor forward, the last two backward). Stage 0 reduces gradients everywhere; the
    target crosses between ranks at stages 1 and 2.

    Args:
        stage: of ZeRO.
        encoder: parameters of the context encoder.
        predictor: parameters of the predictor.
        width: bytes of a weight.
    """
    trained = encoder + predictor
    gradients, weights = {0: 2 * trained}.get(stage, trained), 0
    if stage in (1, 2):
        weights = trained + encoder
    elif stage == 3:
        weights = encoder + 2 * trained
    return width * (gradients + weights)
