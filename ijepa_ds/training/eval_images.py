"""The images of the run's own evaluation: rank 0 finds them once and writes an index of those chosen; all ranks read it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ijepa_ds.config import Config
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_index
from ijepa_ds.data.values import Values
from ijepa_ds.errors import UserError
from ijepa_ds.evals.folders import Labelled, read_pair

logger = logging.getLogger(__name__)


def find(cfg: Config, beat: Callable[[], None] = lambda: None) -> None:
    """Scan `eval.train` and `eval.test`, choose at most `max_train` and `max_test` images, and write their indices (rank 0).

    `beat` is called while the images are found.

    Raises:
        UserError: the images cannot be used.
    """
    assert cfg.eval.train is not None and cfg.eval.test is not None  # config.checks
    try:
        pair = read_pair(cfg.eval.train, cfg.eval.test, ScanOptions.of(cfg.data, beat=beat))
    except UserError as error:
        raise UserError(our_keys(str(error))) from error
    for line in pair.found:
        logger.info("%s", our_keys(line))
    train, test = some(pair.train, cfg.eval.max_train), some(pair.test, cfg.eval.max_test)
    if len(train.labels) < cfg.eval.k:
        key = "max_train" if len(train.labels) < len(pair.train.labels) else "train"
        raise UserError(
            f"eval.k: {cfg.eval.k} is above the {len(train.labels)} images of eval.{key}: lower eval.k, or use more"
        )
    for part, images in (("train", train), ("test", test)):
        assert isinstance(images.paths, ImageFiles)
        images.paths.index_of(images.labels.numpy(), pair.classes).save(_file(cfg, part))


def load(cfg: Config, share: tuple[int, int]) -> dict[str, Labelled]:
    """What `find` has chosen, by part; each of `ranks` ranks checks a share of the files (`open_index`).

    Raises:
        UserError: this host does not see the files.
    """
    parts = {}
    for part, source in (("train", cfg.eval.train), ("test", cfg.eval.test)):
        try:
            index = open_index(_file(cfg, part), str(source), share)
        except UserError as error:
            raise UserError(str(error).replace("data.source", f"eval.{part}", 1)) from error
        index = replace(index, values=Values.of(cfg.data))
        labels = torch.from_numpy(index.labels.astype(np.int64))
        parts[part] = Labelled(ImageFiles(index, np.arange(len(index))), labels)
    return parts


def some(images: Labelled, limit: int) -> Labelled:
    """A fixed random subset of at most `limit` images."""
    n = len(images.labels)
    if n <= limit:
        return images
    return images.subset(np.sort(np.random.default_rng(0).permutation(n)[:limit]).tolist())


def _file(cfg: Config, part: str) -> Path:
    return Path(cfg.run.dir) / f"eval.{part}.index"


def our_keys(text: str) -> str:
    """A message of `ijepa-ds eval`, with the keys of a run instead of options."""
    return text.replace("--train", "eval.train").replace("--test", "eval.test")
