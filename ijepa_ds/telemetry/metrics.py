"""Metrics of a run: time per part of a step, collapse of the representation, memory."""

from __future__ import annotations

import resource
import time

import torch
from torch import Tensor


class Clock:
    """A timer for named parts of a step.

    `mark(name)` adds the time since the previous mark to `name`. On CUDA, marks are events on the stream and do not
    block; only `seconds()` synchronises.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.mark("")

    def mark(self, name: str) -> None:
        """Mark the end of the part called `name`."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Return the seconds per name since the last call, and restart."""
        if self._cuda:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(after, float) and isinstance(before, float):
                spent = after - before
            else:
                spent = before.elapsed_time(after) / 1000  # type: ignore[union-attr, arg-type]
            total[name] = total.get(name, 0.0) + spent
        self._marks = []
        self.mark("")
        return total


@torch.no_grad()
def feature_std(x: Tensor) -> Tensor:
    """Return the mean over features of the standard deviation over tokens, a scalar; near 0 after a collapse.

    Args:
        x: `[..., D]`.
    """
    return x.float().flatten(0, -2).std(dim=0).mean()


def _scaled(x: Tensor) -> Tensor:
    """Return x with a largest absolute value of 1, so that sums of squares neither overflow nor vanish."""
    return x / x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)


@torch.no_grad()
def effective_rank(x: Tensor, limit: int = 4096) -> Tensor:
    """Return the effective rank of centred features: exp(entropy of the normalised singular values), a scalar.

    It is between 1 (complete collapse) and D. Source: Roy & Vetterli 2007; as a probe of self-supervised learning, RankMe
    (Garrido et al. 2023).

    Args:
        x: `[..., D]`.
        limit: Largest number of evenly spaced tokens to use.
    """
    x = x.float().flatten(0, -2)
    x = _scaled(x[:: max(1, x.shape[0] // limit)][:limit])  # else those of a run that diverges overflow
    x = _scaled(x - x.mean(dim=0))
    # singular values from the D x D Gram matrix, whose size does not depend on the number of tokens
    values = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-12)
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum())


def peak_memory_gib(device: torch.device) -> float:
    """Return this rank's peak memory in GiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
