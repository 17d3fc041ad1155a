"""What makes the host wait for the device: counted on a CPU by operation, on a GPU by PyTorch's own warnings."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Their results, or the sizes of their results, depend on values that only the device knows. `float(tensor)`, `bool(tensor)`,
# `.item()` and `.tolist()` of a number are the first.
_WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive"}


class _Operations(TorchDispatchMode):
    """Notes the caller of every operation that would wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        masked = name in ("index", "index_put", "index_put_") and any(
            isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1]
        )
        if name in _WAITING or masked:
            frame = next(f for f in reversed(traceback.extract_stack()[:-1]) if "/torch/" not in f.filename)
            self.found.append(f"{frame.filename}:{frame.lineno} {name}")
        return func(*args, **(kwargs or {}))


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """Inside the block, collect the places that make the host wait for the device."""
    if device.type != "cuda":
        with _Operations() as operations:
            yield operations.found
        return
    places: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        yield places
        torch.cuda.set_sync_debug_mode("default")
    places += [f"{one.filename}:{one.lineno}" for one in caught if "synchronizing" in str(one.message)]
