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
    cfg, notes = published.load_any(arguments.config, arguments.overrides)
    for note in notes if os.environ.get("RANK", "0") == "0" else ():
        logger.info("%s: %s", arguments.config, note)
    plan = check(cfg, world_size)
    begins = new_run and not (Path(cfg.run.dir) / "config.yaml").exists()
    if begins and (found := fresh_problems(cfg, world_size)):
        raise ConfigError([str(problem) for problem in found])
    ds_config = deepspeed_json.load_deepspeed(arguments.deepspeed_config, cfg, plan)
    return cfg, ds_config, plan
