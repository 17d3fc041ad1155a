"""What a run tells about itself: where the time goes, whether the representation collapses."""

from __future__ import annotations

import resource
import time

import torch
from torch import Tensor


class Clock:
    """Time spent in named parts of the step.

    `mark(name)` books the time since the previous mark under `name`. On CUDA marks are events on the stream, so that
    taking time never waits; `seconds()` is the synchronisation.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.mark("")

    def mark(self, name: str) -> None:
        """The part called `name` ends here."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """Seconds per name since the last call; starts anew."""
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
    """Mean over features of the standard deviation over tokens; near 0 when representations have collapsed.

    Args:
        x: `[..., D]`.
    """
    return x.float().flatten(0, -2).std(dim=0).mean()


@torch.no_grad()
def effective_rank(x: Tensor, limit: int = 4096) -> Tensor:
    """exp(entropy of the normalised singular values) of centred features: how many dimensions are in use.

    Between 1 (complete collapse) and D. Source: Roy & Vetterli 2007; as a probe of self-supervision, RankMe
    (Garrido et al. 2023).

    Args:
        x: `[..., D]`.
        limit: at most so many evenly spaced tokens of it are used.
    """
    x = x.float().flatten(0, -2)
    x = x[:: max(1, x.shape[0] // limit)][:limit]
    x = x - x.mean(dim=0)
    # singular values through the D x D Gram matrix: one small symmetric problem whatever the number of tokens
    values = torch.linalg.eigvalsh(x.T @ x).clamp(min=0).sqrt()
    p = values / values.sum().clamp(min=1e-12)
    return torch.exp(-(p * p.clamp(min=1e-12).log()).sum())


def peak_memory_gib(device: torch.device) -> float:
    """The most memory this rank has held: allocated on the GPU, resident on the CPU; GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux gives KiB
