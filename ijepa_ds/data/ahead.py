"""Files are read ahead of their use: `data.readers` reads are under way at once, across micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from ijepa_ds.data.rasters import Window
from ijepa_ds.data.samples import SamplePlan, Samples

Content = bytes | Window


class ReadAhead:
    """Reads the files of the next micro-batches on threads, which mostly wait for the storage."""

    def __init__(self, plan: SamplePlan, readers: int) -> None:
        """Read the samples of `plan` with `readers` reads at once."""
        self._plan, self._readers = plan, readers
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
        self._batches: dict[int, tuple[int, Samples, list[Future[Content]]]] = {}  # micro-batch -> (bad images known, ...)

    def batch(self, micro: int) -> tuple[Samples, list[Future[Content]]]:
        """Return the samples of a micro-batch and what is read of each, and start to read those that follow.

        Calls follow the order of the micro-batches, or repeat one. After `SamplePlan.reject`, a repeated one has the stand-ins.
        A future raises the errors of `SamplePlan.read`.
        """
        for old in [number for number in self._batches if number < micro]:
            self._discard(old)
        samples, contents = self._begin(micro)
        following, ahead = micro, 0
        while ahead < self._readers:
            following += 1
            ahead += len(self._begin(following)[1])
        return samples, contents

    def close(self) -> None:
        """End the threads, without waiting for reads under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, micro: int) -> tuple[Samples, list[Future[Content]]]:
        """Start to read a micro-batch, unless that was done with the unreadable images known by now."""
        known, samples, contents = self._batches.get(micro, (-1, None, []))
        if samples is None or known != self._plan.num_bad:
            before = dict(zip(_keys(samples), contents, strict=True)) if samples else {}
            known, samples = self._plan.num_bad, self._plan.samples(micro)
            contents = self._read(samples, before)
            self._batches[micro] = known, samples, contents
        return samples, contents

    def _read(self, samples: Samples, before: Mapping[tuple[int, bytes], Future[Content]]) -> list[Future[Content]]:
        return [
            before.get(key) or self._pool.submit(self._plan.read, key[0], window)
            for key, window in zip(_keys(samples), samples.windows, strict=True)
        ]

    def _discard(self, micro: int) -> None:
        for content in self._batches.pop(micro)[2]:
            content.cancel()


def _keys(samples: Samples) -> list[tuple[int, bytes]]:
    """Image and window of each sample."""
    return [(index, window.tobytes()) for index, window in zip(samples.indices.tolist(), samples.windows, strict=True)]
