"""Reads and checks the configuration of a training command. Needs no PyTorch."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from ijepa_ds.cluster import hosts
from ijepa_ds.config import BatchPlan, Config, ConfigError, check, deepspeed_json, published
from ijepa_ds.config.fresh import fresh_problems

logger = logging.getLogger(__name__)


def read(arguments: argparse.Namespace, world_size: int, new_run: bool = True) -> tuple[Config, dict[str, Any], BatchPlan]:
    """Read both files; runs before a process group or a model exists.

    Args:
        arguments: with `config`, `deepspeed_config` and `overrides`.
        world_size: number of ranks.
        new_run: check what a new run should not begin with (`config.fresh`). Benchmarks do not: they override keys.

    Returns:
        The run, the DeepSpeed configuration (see `deepspeed_json.load_deepspeed`) and how the batch is cut.

    Raises:
        ValueError: with all problems found.
    """
    hosts.check_words([str(arguments.config), str(arguments.deepspeed_config), *arguments.overrides])
    try:
        cfg, plan = _read_yaml(arguments, world_size, new_run)
    except ConfigError as error:
        problems = list(error.problems)
    else:
        return cfg, deepspeed_json.load_deepspeed(arguments.deepspeed_config, cfg, plan), plan
    try:  # the problems of both files at once; this batch is none of the run's
        deepspeed_json.read_deepspeed(arguments.deepspeed_config, BatchPlan(1, 1, world_size), 1.0, "float32")
    except ConfigError as error:
        problems += error.problems
    raise ConfigError(problems)


def _read_yaml(arguments: argparse.Namespace, world_size: int, new_run: bool) -> tuple[Config, BatchPlan]:
    cfg, notes = published.load_any(arguments.config, arguments.overrides)
    for note in notes if os.environ.get("RANK", "0") == "0" else ():
        logger.info("%s: %s", arguments.config, note)
    plan = check(cfg, world_size)
    begins = new_run and not (Path(cfg.run.dir) / "config.yaml").exists()
    if begins and (found := fresh_problems(cfg, world_size)):
        raise ConfigError([str(problem) for problem in found])
    return cfg, plan
