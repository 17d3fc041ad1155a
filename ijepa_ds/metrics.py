"""What a run tells about itself: where the time goes, whether the representation collapses, TensorBoard."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter


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


class Log:
    """TensorBoard on rank 0, nothing elsewhere."""

    def __init__(self, run_dir: Path, rank: int, purge_step: int) -> None:
        """Open the event file.

        Args:
            run_dir: where events go: `tensorboard --logdir RUN`.
            rank: only rank 0 writes.
            purge_step: points at or after this step, from before a resume, are hidden.
        """
        self._writer = SummaryWriter(str(run_dir), purge_step=purge_step) if rank == 0 else None

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Points at `step` (optimizer steps done)."""
        if self._writer:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int | None = None) -> None:
        """A preformatted text."""
        if self._writer:
            self._writer.add_text(tag, "    " + text.replace("\n", "\n    "), step)

    def layout(self, layout: dict[str, dict[str, list[object]]]) -> None:
        """What TensorBoard's "Custom Scalars" shows (`dashboard.LAYOUT`)."""
        if self._writer:
            self._writer.add_custom_scalars(layout)

    def image(self, step: int, tag: str, picture: Tensor) -> None:
        """A picture, uint8 `[H, W, 3]`."""
        if self._writer:
            self._writer.add_image(tag, picture, step, dataformats="HWC")

    def flush(self) -> None:
        """Write what is pending."""
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        """Write what is pending."""
        if self._writer:
            self._writer.close()
