"""Counts what really travels between ranks: every collective that reaches torch's dispatcher, whoever called it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Traffic(TorchDispatchMode):
    """Number of collectives and bytes of their largest side, by name, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").strip("_")
            sides = [sum(t.nbytes for t in tree_leaves(a) if isinstance(t, Tensor)) for a in args]
            self.calls[name] += 1
            self.bytes[name] += max(sides, default=0)
        return func(*args, **(kwargs or {}))
