"""Progress of a scan: a bar on a terminal, and lines with rate and remaining time in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tqdm import tqdm

logger = logging.getLogger(__name__)
_EVERY = 30.0  # seconds between lines


class Progress:
    """Counts images, and knows from the caller which share of the source is done."""

    def __init__(self, source: str, show: bool, beat: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Begin.

        Args:
            source: its name.
            show: whether to show anything.
            beat: called whenever the scan gets on, for whoever waits for it.
            clock: seconds.
        """
        self._source, self._show, self._beat, self._clock = source, show, beat, clock
        self._began = self._said = clock()
        self._count = self._again = 0
        self.share: Callable[[], float] = lambda: 0.0  # of the source, 0 to 1; 0 when unknown
        self._bar = tqdm(desc=f"index {source}", unit="image", disable=None if show else True)

    def update(self, count: int, known: bool = False) -> None:
        """Note that `count` more images are done; `known`: an earlier scan had looked at them."""
        self._beat()
        self._count, self._again = self._count + count, self._again + (count if known else 0)
        self._bar.update(count)
        now = self._clock()
        if self._show and self._bar.disable and now - self._said >= _EVERY:
            self._said = now
            logger.info("%s", self.line(now))

    def line(self, now: float) -> str:
        """Images, images a second, and how long the rest takes if the share is known."""
        spent, share = now - self._began, self.share()
        left = f"; about {_duration(spent * (1 - share) / share)} left ({share:.0%} done)" if 0 < share < 1 else ""
        known = f" ({self._again:,} of them by an earlier scan)" if self._again else ""
        return f"index {self._source}: {self._count:,} images{known}, {self._count / max(spent, 1e-9):,.0f}/s{left}"

    def close(self) -> None:
        """End the bar."""
        self._bar.close()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
