"""Waiting for events in tests.

Every limit goes through `limit`. It bounds a test that hangs; no test measures it.

`TEST_TIMEOUT_SCALE=3` in the environment makes all limits three times longer, for a slow or busy machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

_SCALE = float(os.environ.get("TEST_TIMEOUT_SCALE", "1"))


def limit(seconds: float) -> float:
    """Seconds to wait at most; choose them ten times longer than the event takes on an idle machine."""
    return seconds * _SCALE


def wait_until(condition: Callable[[], object], seconds: float, what: str | Callable[[], str], pause: float = 0.05) -> None:
    """Return as soon as `condition()` is true.

    Args:
        condition: called every `pause` seconds.
        seconds: the limit, before scaling.
        what: the awaited event, or a function that returns the message of a failure (a log).
        pause: seconds.

    Raises:
        AssertionError: the limit has passed.
    """
    end = time.monotonic() + limit(seconds)
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {limit(seconds):.0f} s for: {what if isinstance(what, str) else what()}")
        time.sleep(pause)
