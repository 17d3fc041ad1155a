"""Segment or depth of the target encoder during training (`eval.task`): the scores of `ijepa-ds eval` on its patch tokens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ijepa_ds.config import Config
from ijepa_ds.data.transforms import read_layers
from ijepa_ds.data.values import Values
from ijepa_ds.distributed.agreement import agree
from ijepa_ds.distributed.exchange import gather_objects, host_group
from ijepa_ds.errors import UserError
from ijepa_ds.evals.dense import pairs, tasks
from ijepa_ds.evals.dense.windows import boxes_of, cut, resized
from ijepa_ds.evals.ranks import World
from ijepa_ds.evals.report import tag
from ijepa_ds.evals.session import Session, filled_text
from ijepa_ds.evals.settings import Settings
from ijepa_ds.training.engine import Engine
from ijepa_ds.training.eval_images import our_keys, some
from ijepa_ds.training.live_eval import LiveEval, check_room
from ijepa_ds.training.streamed import Weights

logger = logging.getLogger(__name__)
_SCORES = {"segment": (tasks.segment, "mIoU, linear"), "depth": (tasks.depth, "delta1")}  # and which marks the best checkpoint
_BATCH = 256  # windows


def begin(cfg: Config, engine: Engine, own: tuple[int, int], done: int, beat: Callable[[], None]) -> LiveDense:
    """Find and check the images of `eval.train` and `eval.test`; every rank calls it, and reads the labels of its share.

    Args:
        cfg: the run.
        engine: of the run.
        own: rank and number of ranks.
        done: steps done.
        beat: called while files are read.

    Raises:
        UserError: names what is missing or wrong.
    """
    world = _world(own)
    pair = agree(lambda: _with_our_keys(lambda: _find(cfg, world, beat)))
    return agree(lambda: LiveDense(cfg, engine, _with_our_keys(lambda: pairs.settle(pair, world)), *own, done))


def _world(own: tuple[int, int]) -> World:
    return World(own[0], own[0], own[1], host_group() if own[1] > 1 else None)


def _find(cfg: Config, world: World, beat: Callable[[], None]) -> pairs.DensePair:
    assert cfg.eval.train is not None and cfg.eval.test is not None  # config.checks
    values = Values.of(cfg.data)
    source = pairs.Source(task=cfg.eval.task, labels=cfg.eval.labels, max_pixels=cfg.data.max_pixels, values=values)
    return pairs.read_dense(cfg.eval.train, cfg.eval.test, source, cfg.data.threads, world, beat)


def _with_our_keys(work: Callable[[], pairs.DensePair]) -> pairs.DensePair:
    try:
        return work()
    except UserError as error:
        raise UserError(our_keys(str(error))) from error


class LiveDense(LiveEval):
    """The evaluation of `eval.task: segment` or `depth`. Every rank has one and calls `run` at the same steps."""

    def __init__(self, cfg: Config, engine: Engine, pair: pairs.DensePair, rank: int, world_size: int, start: int) -> None:
        """Choose the images, and read the history up to step `start`; `pair` is settled.

        Raises:
            UserError: the evaluation cannot fit into memory, or an image cannot be read.
        """
        limits = {"train": cfg.eval.max_train, "test": cfg.eval.max_test}
        parts = {part: some(getattr(pair, part), limit) for part, limit in limits.items()}
        super().__init__(cfg, engine, parts, rank, world_size, start)
        self._pair, self._values = replace(pair, train=parts["train"], test=parts["test"]), Values.of(cfg.data)
        self._score_of, self._best = _SCORES[cfg.eval.task]
        self._windows = {part: [self._count(str(parts[part].paths[at])) for at in self._share(part)] for part in parts}
        tokens = 4 * cfg.grid**2 * self._encoder.width * sum(sum(counts) for counts in self._windows.values())
        check_room(self._encoder.num_bytes + tokens, engine.device)

    def _share(self, part: str) -> range:
        return self._world.share(len(self._parts[part].labels))

    def _count(self, path: str) -> int:
        size = self._cfg.data.crop_size
        return len(boxes_of(*resized(*pairs.size_of(path, self._values), size), size))

    def run(self, done: int, beat: Callable[[], None]) -> dict[str, float]:
        """As `LiveEval.run`: fit the heads of the task on the tokens of `eval.train`, and score those of `eval.test`."""
        began = time.perf_counter()
        problem, computed = self._computed(beat)
        problems = [text for text in gather_objects(problem) if text]
        if not problems:
            try:
                scores = self._fitted(computed, beat)
            except Exception as error:
                problems = [f"{type(error).__name__}: {error}"]
        if self._world.rank:
            return {}
        if problems:
            return self._skipped(done, problems[0])
        self._note(done, scores)
        return {tag(name): value for name, value in scores.items()} | {"eval/seconds": time.perf_counter() - began}

    def _fitted(self, computed: dict[str, list[Tensor]], beat: Callable[[], None]) -> dict[str, float]:
        data = self._cfg.data
        settings = Settings(
            size=data.crop_size, mean=data.mean, std=data.std, tasks=(self._cfg.eval.task,), token_gib=float("inf"),
            max_pixels=data.max_pixels, values=self._values,
        )  # fmt: skip
        session = Session(nn.Identity(), self._pair, settings, "", self._world)
        session.beat, session.known = beat, {
            str(self._parts[part].paths[at]): tokens
            for part in self._parts
            for at, tokens in zip(self._share(part), computed[part], strict=True)
        }  # fmt: skip
        with torch.enable_grad():
            return self._score_of(session).scores

    def _groups(self, part: str) -> list[range]:
        """As in `LiveEval`; an image counts as many times as it has windows."""
        share, groups, held = self._share(part), [], self._encoder.images_at_once
        first = share.start
        for at, count in zip(share, self._windows[part], strict=True):
            if held < count and at > first:
                groups.append(range(first, at))
                first, held = at, self._encoder.images_at_once
            held -= count
        return [*groups, range(first, share.stop)] if share else []

    def _apply(self, weights: Weights, part: str, group: range, beat: Callable[[], None]) -> list[Tensor]:
        """Tokens of the windows of some images of a part, float32 `[T, N, D]` each, on the CPU."""
        windows, filled = [], dict[str, int]()
        for at in group:
            path = str(self._parts[part].paths[at])
            layers = read_layers(path, self._cfg.data.max_pixels, self._values, filled=filled)
            windows.append(cut(layers, self._cfg.data.crop_size)[0])
            beat()
        if filled:
            logger.info("eval.%s: %s", part, filled_text(filled))
        whole, size = np.concatenate(windows), min(_BATCH, self._encoder.images_at_once)
        batches = [whole[first : first + size] for first in range(0, len(whole), size)]
        tokens = torch.cat(self._encoder.tokens(weights, batches, beat))
        return list(tokens.split([len(part) for part in windows]))
