"""Steps skipped because their loss or gradients were not finite: they are reported, and too many in a row end the run."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.distributed.exchange import decide
from ijepa_ds.durable import append_lines
from ijepa_ds.errors import TrainingError
from ijepa_ds.training.bad_samples import BadSamples

logger = logging.getLogger(__name__)
_NAMED = 4  # images of a rank, and ranks, named in the message; the file has all of them


class SkippedSteps:
    """Counts skipped steps in a row; one object on every rank."""

    def __init__(self, cfg: Config, plan: BatchPlan, folder: ImageIndex, bad: BadSamples, rank: int) -> None:
        self._cfg, self._folder, self._bad = cfg, folder, bad
        self._share = Share(rank=rank, world_size=plan.world_size, micro_batch=plan.micro_batch, accumulation=plan.accumulation)
        self._in_a_row = 0

    def note(self, step: int, applied: bool, losses: list[Tensor]) -> None:
        """Count a step, and report it if it was skipped.

        Args:
            step: 0-based.
            applied: whether the optimizer applied it; the same on every rank.
            losses: scalars, of this rank's micro-batches; read only if the step was skipped.

        Raises:
            TrainingError: `run.max_nonfinite` steps in a row were skipped.
        """
        if applied:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        bad = [micro for micro, loss in enumerate(losses) if not bool(torch.isfinite(loss))]
        numbers = [self._share.numbers(step * self._share.accumulation + micro) for micro in bad]
        mine = (socket.gethostname(), np.concatenate(numbers).tolist() if numbers else [])
        text = decide(mine, lambda every: self._report(step + 1, every))
        if self._in_a_row >= self._cfg.run.max_nonfinite:
            raise TrainingError(
                f"{text}. {self._in_a_row} skipped steps in a row (run.max_nonfinite). Check those images, lower "
                "optimization.lr, or set optimization.clip_grad; older checkpoints are kept"
            )

    def _report(self, done: int, every: list[tuple[str, list[int]]]) -> str:
        """Write and log, on rank 0, what all ranks have found; the text."""
        blamed = {rank: found for rank, found in enumerate(every) if found[1]}
        cfg = self._cfg
        plan = SamplePlan(cfg.data, self._folder, seed=cfg.run.seed, share=self._share, bad=self._bad.found)
        text = self._describe(done, blamed, plan)
        self._write(done, blamed, plan)
        logger.error("%s", text)
        return text

    def _describe(self, done: int, blamed: dict[int, tuple[str, list[int]]], plan: SamplePlan) -> str:
        what = "the loss is not finite on " if blamed else "the gradients are not finite, all losses are"
        parts = []
        for rank, (host, numbers) in list(blamed.items())[:_NAMED]:
            names = ", ".join(_names(plan, numbers[:_NAMED]))
            more = f" and {len(numbers) - _NAMED} more" if len(numbers) > _NAMED else ""
            parts.append(f"rank {rank} (host {host}; samples {numbers[0]}..{numbers[-1]}: {names}{more})")
        parts += [f"{len(blamed) - _NAMED} more ranks"] if len(blamed) > _NAMED else []
        return f"step {done} SKIPPED: {what}{', '.join(parts)}; all images are in skipped_steps.jsonl"

    def _write(self, done: int, blamed: dict[int, tuple[str, list[int]]], plan: SamplePlan) -> None:
        first = (done - 1) * self._share.batch_size
        whole = [("", list(range(first, first + self._share.batch_size)))]  # if all losses are finite: the whole batch
        line = {
            "step": done,
            "ranks": {rank: host for rank, (host, _) in blamed.items()},
            "images": [name for _, numbers in blamed.values() or whole for name in _names(plan, numbers)],
        }
        append_lines(Path(self._cfg.run.dir) / "skipped_steps.jsonl", [json.dumps(line)])


def _names(plan: SamplePlan, numbers: list[int]) -> list[str]:
    return [str(plan.index.paths[index]) for index in plan.indices(np.array(numbers)).tolist()]
