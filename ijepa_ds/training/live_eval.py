"""k-NN and RankMe of the target encoder during training, on separate images; the best checkpoint is marked and kept.

The sharded float32 average is gathered into a plain encoder, parameter by parameter. Networks, optimizer and random numbers
do not change.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.checkpoint.writer import BEST
from ijepa_ds.config import Config
from ijepa_ds.config.sizes import size_of
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.transforms import UnreadableError
from ijepa_ds.distributed.exchange import gather_on_first
from ijepa_ds.durable import write_text
from ijepa_ds.evals import knn, rank
from ijepa_ds.evals.features import extract
from ijepa_ds.evals.folders import Labelled, batches, read_pair
from ijepa_ds.evals.ranks import World
from ijepa_ds.evals.readable import find_unreadable, without
from ijepa_ds.model.vit import Encoder
from ijepa_ds.training.engine import Engine
from ijepa_ds.zero.gather import gathered

logger = logging.getLogger(__name__)
HISTORY = "evaluations.json"
_CACHE = 1 << 30  # bytes of decoded images that a rank keeps between evaluations
_BATCH = 256


class LiveEval:
    """The evaluation of `eval.every`. Every rank has one and calls `run` at the same steps."""

    def __init__(self, cfg: Config, engine: Engine, rank: int, world_size: int, start: int) -> None:
        """Find the images, and read the history up to step `start`.

        Raises:
            ValueError: the images cannot be used.
        """
        assert cfg.eval.train is not None and cfg.eval.test is not None  # config.checks
        self._cfg, self._engine, self._world = cfg, engine, World(rank, rank, world_size)
        try:
            pair = read_pair(cfg.eval.train, cfg.eval.test, ScanOptions.of(cfg.data))
        except ValueError as error:
            raise ValueError(str(error).replace("--train", "eval.train").replace("--test", "eval.test")) from error
        for line in pair.found if rank == 0 else ():
            logger.info("%s", line.replace("--train", "eval.train").replace("--test", "eval.test"))
        self._parts = {"train": _some(pair.train, cfg.eval.max_train), "test": _some(pair.test, cfg.eval.max_test)}
        if len(self._parts["train"].labels) < cfg.eval.k:
            raise ValueError(f"eval.k: {cfg.eval.k} is above the {len(self._parts['train'].labels)} images of eval.train")
        self._encoder = Encoder(size_of(cfg.model), cfg.model.patch_size, cfg.grid, position_grid=cfg.model.position_grid)
        self._encoder.requires_grad_(False)
        self._unreadable: dict[str, set[int]] = {part: set() for part in self._parts}  # positions that this rank left out
        self._kept: dict[str, list[np.ndarray]] = {}
        self._file = Path(cfg.run.dir) / HISTORY
        self.history = [entry for entry in _read(self._file) if entry["step"] <= start]

    def due(self, done: int, last: int) -> bool:
        """Whether an evaluation is due after `done` of `last` steps."""
        return done % self._cfg.eval.every == 0 or done == last

    def run(self, done: int, beat: Callable[[str], None]) -> dict[str, float]:
        """Evaluate the current target encoder; every rank calls it.

        Args:
            done: number of steps done.
            beat: called while the evaluation makes progress.

        Returns:
            On rank 0, scores by their TensorBoard tags; empty if the evaluation failed, which is logged. Images that cannot
            be read are left out.
        """
        began = time.perf_counter()
        gather_target(self._engine, self._encoder)
        problem, mine = None, {}
        try:
            mine = {part: self._features(part, beat) for part in self._parts}
        except (ValueError, OSError) as error:
            problem = str(error)
        self._encoder.to("cpu")  # free the device memory for training
        shares = gather_on_first((problem, mine, self._unreadable))
        if shares is None:
            return {}
        problems = [text for text, *_ in shares if text]
        if problems:
            logger.warning("evaluation at step %d skipped: %s", done, problems[0])
            return {}
        train, test = (torch.cat([share[part] for _, share, _ in shares]) for part in ("train", "test"))
        labels = {
            part: without(self._parts[part], {at for *_, left_out in shares for at in left_out[part]}).labels
            for part in self._parts
        }
        name = f"{self._cfg.eval.k}-NN"
        scores = knn.evaluate(train, labels["train"], test, labels["test"], k=(self._cfg.eval.k,))
        found = {f"eval/{name}": scores[name], "eval/RankMe": rank.rankme(test), "eval/seconds": time.perf_counter() - began}
        self._note(done, {name: scores[name], "RankMe": found["eval/RankMe"]})
        return found

    def _features(self, part: str, beat: Callable[[str], None]) -> Tensor:
        data, device = self._cfg.data, self._engine.device
        dtype = torch.float32 if device.type == "cpu" else self._engine.compute_dtype
        while self._mine(part):
            try:
                return extract(self._encoder, self._images(part, beat), data.mean, data.std, device, dtype)
            except UnreadableError:
                found = find_unreadable(self._parts[part].paths, self._mine(part), data.threads, data.max_pixels)
                if not found:  # it was unreadable for a moment
                    raise
                logger.warning("eval.%s: %d images are left out: %s", part, len(found), "; ".join(found.values()))
                self._unreadable[part] |= found.keys()
        return torch.empty(0, self._encoder.size.width)

    def _mine(self, part: str) -> list[int]:
        """Positions of this rank's readable images."""
        share = self._world.share(len(self._parts[part].labels))
        return [position for position in share if position not in self._unreadable[part]]

    def _images(self, part: str, beat: Callable[[str], None]) -> Iterator[np.ndarray]:
        """This rank's images of a part, uint8 `[n, S, S, 3]`; kept decoded between evaluations if they fit in memory."""
        images, size = self._parts[part], self._cfg.data.crop_size
        if part not in self._kept:
            paths = [images.paths[i] for i in self._mine(part)]
            read = batches(paths, size, _BATCH, self._cfg.data.threads, self._cfg.data.max_pixels)
            keep: list[np.ndarray] | None = [] if 3 * size**2 * len(paths) <= _CACHE else None
            for batch in read:
                if keep is not None:
                    keep.append(batch)
                beat("eval")
                yield batch
            if keep is not None:
                self._kept[part] = keep
            return
        for batch in self._kept[part]:
            beat("eval")
            yield batch

    def _note(self, done: int, scores: dict[str, float]) -> None:
        """Add scores to the history, and mark the step with the best k-NN score, the first of equals."""
        self.history = [entry for entry in self.history if entry["step"] < done] + [{"step": done} | scores]
        name = f"{self._cfg.eval.k}-NN"
        known = [entry for entry in self.history if name in entry]
        try:
            _write(self._file, self.history)
            _write(self._file.with_name(BEST), max(known, key=lambda entry: entry[name]))
        except OSError as error:
            logger.error("%s cannot be written (%s): training continues", self._file, error.strerror)


@torch.no_grad()
def gather_target(engine: Engine, encoder: Encoder) -> None:
    """Copy the sharded average into a plain float32 encoder on every rank. The engine does not change.

    Args:
        engine: has the average.
        encoder: an encoder of the same shape that is not sharded.

    Raises:
        RuntimeError: the ranks together do not hold every value exactly once.
    """
    parameters = dict(encoder.named_parameters())
    for name, whole in gathered(engine.ema.layout, engine.ema.average):
        parameters.pop(name).copy_(whole.view_as(encoder.get_parameter(name)))
    if parameters:
        raise RuntimeError(f"the target has no {', '.join(sorted(parameters))}: this sharding is not supported")


def _some(images: Labelled, limit: int) -> Labelled:
    """A fixed random subset of at most `limit` images."""
    n = len(images.labels)
    if n <= limit:
        return images
    chosen = np.sort(np.random.default_rng(0).permutation(n)[:limit])
    return Labelled([images.paths[int(i)] for i in chosen], images.labels[torch.from_numpy(chosen)])


def _read(file: Path) -> list[dict]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def _write(file: Path, content: object) -> None:
    write_text(file, json.dumps(content, indent=1) + "\n")
