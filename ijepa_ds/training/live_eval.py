"""Scores of the target encoder during training, on separate images; the best checkpoint is marked and kept.

Here: k-NN and RankMe of average-pooled features; `live_dense` has segment and depth.

The sharded float32 average is gathered parameter by parameter, and a rank holds one block of it at a time. Networks,
optimizer and random numbers do not change. It runs after the checkpoint of its step is safe.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ijepa_ds import machine
from ijepa_ds.checkpoint.writer import BEST
from ijepa_ds.config import Config
from ijepa_ds.data.transforms import UnreadableError
from ijepa_ds.data.values import Values
from ijepa_ds.distributed.environment import ranks_here
from ijepa_ds.distributed.exchange import gather_on_first, host_group, max_over_ranks
from ijepa_ds.durable import write_text
from ijepa_ds.errors import UserError
from ijepa_ds.evals import knn, rank
from ijepa_ds.evals.folders import Labelled, batches
from ijepa_ds.evals.ranks import World
from ijepa_ds.evals.readable import find_unreadable, without
from ijepa_ds.evals.session import filled_text
from ijepa_ds.training.engine import Engine
from ijepa_ds.training.streamed import StreamedEncoder, Weights
from ijepa_ds.zero.gather import gathered

logger = logging.getLogger(__name__)
HISTORY = "evaluations.json"
_CACHE = 1 << 30  # bytes of decoded images that a rank keeps between evaluations
_BATCH = 256


class LiveEval:
    """The evaluation of `eval.every`. Every rank has one and calls `run` at the same steps."""

    def __init__(
        self, cfg: Config, engine: Engine, images: dict[str, Labelled], rank: int, world_size: int, start: int
    ) -> None:
        """Read the history up to step `start`; `images` come from `eval_images.load`.

        Raises:
            UserError: the evaluation cannot fit into memory.
        """
        self._cfg, self._engine = cfg, engine
        self._world = World(rank, rank, world_size, host_group() if world_size > 1 else None)
        self._best = f"{cfg.eval.k}-NN"  # the score that marks the best checkpoint
        self._parts = images
        dtype = torch.float32 if engine.device.type == "cpu" else engine.compute_dtype
        self._encoder = StreamedEncoder(cfg, engine.device, dtype)
        check_room(self._encoder.num_bytes, engine.device)
        self._unreadable: dict[str, set[int]] = {part: set() for part in self._parts}  # positions that this rank left out
        self._kept: dict[tuple[str, int], list[np.ndarray]] = {}
        self._file = Path(cfg.run.dir) / HISTORY
        self.history = [entry for entry in _read(self._file) if entry["step"] <= start] if rank == 0 else []

    def due(self, done: int, last: int) -> bool:
        """Whether an evaluation is due after `done` of `last` steps."""
        return done % self._cfg.eval.every == 0 or done == last

    def knows(self, done: int) -> bool:
        """On rank 0, whether the history has the scores after `done` steps."""
        return any(entry["step"] == done for entry in self.history)

    def run(self, done: int, beat: Callable[[], None]) -> dict[str, float]:
        """Evaluate the current target encoder; every rank calls it. A failure on any rank is a warning; training goes on.

        Args:
            done: number of steps done.
            beat: called while the evaluation makes progress.

        Returns:
            On rank 0, scores by their TensorBoard tags; empty after a failure. Images that cannot be read are left out.
        """
        began = time.perf_counter()
        problem, rows = self._computed(beat)
        none = torch.empty(0, self._encoder.width)
        mine = {part: torch.cat([none, *found]) for part, found in rows.items()}
        shares = gather_on_first((problem, {} if problem else mine, self._unreadable))
        if shares is None:
            return {}
        problems = [text for text, *_ in shares if text]
        if not problems:
            try:
                left_out = [places for *_, places in shares]
                return self._score([share for _, share, _ in shares], left_out, done, began)
            except Exception as error:
                problems = [f"{type(error).__name__}: {error}"]
        return self._skipped(done, problems[0])

    def _skipped(self, done: int, problem: str) -> dict[str, float]:
        logger.warning("evaluation at step %d skipped, training goes on: %s", done, problem)
        return {}

    def _computed(self, beat: Callable[[], None]) -> tuple[str | None, dict[str, list[Tensor]]]:
        """What went wrong on this rank, and what `_apply` has returned for its images of each part, in their order."""
        problem, found = None, {}
        for part in self._parts:
            groups, rows = self._groups(part), []
            for number in range(int(max_over_ranks(len(groups)))):  # equally many on every rank: each gathers the weights
                group = groups[number] if number < len(groups) and problem is None else range(0)
                weights = gathered(self._engine.ema.layout, self._engine.ema.average)
                try:
                    rows += self._apply(weights, part, group, beat) if group else []
                except Exception as error:  # also out of memory; other ranks must not wait for this one
                    problem = f"rank {self._world.rank} on {socket.gethostname()}: {type(error).__name__}: {error}"
                for _ in weights:  # this rank takes part in every gather, also after an error of its own
                    beat()
            found[part] = rows
        return problem, found

    def _groups(self, part: str) -> list[range]:
        """This rank's images of a part, as many at a time as fit into memory."""
        share, size = self._world.share(len(self._parts[part].labels)), self._encoder.images_at_once
        return [share[first : first + size] for first in range(0, len(share), size)]

    def _apply(self, weights: Weights, part: str, group: range, beat: Callable[[], None]) -> list[Tensor]:
        """Features of some images of a part, float32 `[n, D]` on the CPU."""
        return [self._encoder.features(weights, self._images(part, group, beat), beat)]

    def _score(
        self, shares: list[dict[str, Tensor]], left_out: list[dict[str, set[int]]], done: int, began: float
    ) -> dict[str, float]:
        train, test = (torch.cat([share[part] for share in shares]) for part in ("train", "test"))
        labels = {
            part: without(images, {at for places in left_out for at in places[part]}).labels
            for part, images in self._parts.items()
        }
        name = self._best
        scores = knn.evaluate(train, labels["train"], test, labels["test"], k=(self._cfg.eval.k,))
        found = {f"eval/{name}": scores[name], "eval/RankMe": rank.rankme(test), "eval/seconds": time.perf_counter() - began}
        self._note(done, {name: scores[name], "RankMe": found["eval/RankMe"]})
        return found

    def _images(self, part: str, group: range, beat: Callable[[], None]) -> list[np.ndarray]:
        """Readable images of a part, `[n, S, S, C]`; kept decoded between evaluations if this rank's fit in memory."""
        kept = self._kept.get((part, group.start))
        if kept is not None:
            return kept
        images, data = self._parts[part], self._cfg.data
        kept = []
        while positions := [at for at in group if at not in self._unreadable[part]]:
            paths, size = [images.paths[at] for at in positions], min(_BATCH, self._encoder.images_at_once)
            try:
                filled: dict[str, int] = {}
                for batch in batches(paths, data.crop_size, size, data.threads, data.max_pixels, filled=filled):
                    kept.append(batch)
                    beat()
                if filled:
                    logger.info("eval.%s: %s", part, filled_text(filled))
                break
            except UnreadableError:
                kept = []
                found = find_unreadable(images.paths, positions, data.threads, data.max_pixels)
                if not found:  # it was unreadable for a moment
                    raise
                logger.warning("eval.%s: %d images are left out: %s", part, len(found), "; ".join(found.values()))
                self._unreadable[part] |= found.keys()
        values = Values.of(data)
        if values.num_bytes * data.crop_size**2 * len(self._world.share(len(images.labels))) <= _CACHE:
            self._kept[part, group.start] = kept
        return kept

    def _note(self, done: int, scores: dict[str, float]) -> None:
        """Add scores to the history, and mark the step with the best one, the first of equals."""
        self.history = [entry for entry in self.history if entry["step"] < done] + [{"step": done} | scores]
        name = self._best
        known = [entry for entry in self.history if name in entry]
        try:
            _write(self._file, self.history)
            _write(self._file.with_name(BEST), max(known, key=lambda entry: entry[name]))
        except OSError as error:
            logger.error("%s cannot be written (%s): training continues", self._file, error.strerror)


def check_room(needed: int, device: torch.device) -> None:
    """Refuse an evaluation that cannot fit.

    Raises:
        UserError: says how much is needed and how much there is.
    """
    there = machine.memory_bytes() // ranks_here(os.environ)
    if device.type == "cuda":
        there = min(there, torch.cuda.mem_get_info(device)[1])
    if needed > there:
        raise UserError(
            f"eval.every: it needs {needed / 2**30:.1f} GiB on every rank (a block in float32, and tokens), and there "
            f"are {there / 2**30:.1f}: set eval.every=0, and score checkpoints with `ijepa-ds eval`"
        )


def _read(file: Path) -> list[dict]:
    """The history; an unreadable file is kept under another name, and the history begins anew."""
    if not file.is_file():
        return []
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [row | {"step": int(row["step"])} for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        aside = file.with_name(f"{file.name}.damaged")
        with suppress(OSError):
            file.replace(aside)
        logger.warning("%s is damaged (%s); it is now %s, and the history of evaluations begins anew", file, error, aside.name)
        return []


def _write(file: Path, content: object) -> None:
    write_text(file, json.dumps(content, indent=1) + "\n")
