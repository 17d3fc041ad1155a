"""Processor time that a step spends in DeepSpeed's hooks: gathers, releases, and what reduces gradients."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

# Called by the hooks of modules and gradients, and at the end of a backward pass, in DeepSpeed 0.19.8.
COORDINATOR = ("fetch_sub_module", "release_sub_module", "release_and_reset_all")
STAGE_3 = ("reduce_ready_partitions_and_remove_grads", "independent_gradient_partition_epilogue")
STAGES_1_AND_2 = ("process_gradients", "independent_gradient_partition_epilogue")


def hook_seconds(optimizer: Any, step: Callable[[], object], steps: int) -> list[float]:
    """Run steps with a clock around the functions that DeepSpeed's hooks call.

    The clock itself adds about a microsecond to each of these calls, so these steps count for nothing else.

    Args:
        optimizer: `engine.optimizer`.
        step: runs a whole step.
        steps: how many.

    Returns:
        Seconds of each step; empty for an optimizer without such functions (stage 0, stage 1 in bfloat16 with
        accumulation).
    """
    places = _places(optimizer)
    if not places:
        return []
    inside, total = 0, 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside, total
            inside += 1
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                inside -= 1
                if not inside:  # one of them may call another
                    total += time.process_time() - began

        return call

    found = []
    for owner, name in places:
        setattr(owner, name, timed(getattr(owner, name)))
    try:
        for _ in range(steps):
            total = 0.0
            step()
            found.append(total)
    finally:
        for owner, name in places:
            delattr(owner, name)
    return found


def _places(optimizer: Any) -> list[tuple[Any, str]]:
    """Objects and the names of their methods."""
    offload = getattr(optimizer, "parameter_offload", None)
    if offload is not None:
        return [*((offload.get_param_coordinator(), name) for name in COORDINATOR), *((optimizer, n) for n in STAGE_3)]
    return [(optimizer, n) for n in STAGES_1_AND_2] if all(hasattr(optimizer, n) for n in STAGES_1_AND_2) else []
