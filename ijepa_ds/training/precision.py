"""Weights in bfloat16 or float32: `model.precision: auto` is resolved once, at a fresh start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ijepa_ds import config
from ijepa_ds.checkpoint.folder import check_files
from ijepa_ds.config import Config, Precision, deepspeed_json
from ijepa_ds.config.sizes import size_of
from ijepa_ds.distributed.agreement import agree
from ijepa_ds.distributed.exchange import broadcast_object
from ijepa_ds.model import cpu

logger = logging.getLogger(__name__)


def resolve(cfg: Config, ds_config: dict[str, Any], rank: int, device: torch.device) -> tuple[Config, dict[str, Any]]:
    """Replace `model.precision: auto` by the type that rank 0 chooses; the same on every rank.

    A run that continues keeps the type that its `config.yaml`, or the checkpoint it continues, names. A fresh start takes
    bfloat16 on a GPU, and on a CPU the type in which a linear layer is faster.

    Args:
        cfg: the run.
        ds_config: from `deepspeed_json.load_deepspeed`; completed with the precision if `cfg` leaves it open.
        rank: this rank.
        device: this rank's.

    Raises:
        ValueError, CheckpointError: the configuration or the checkpoint to continue cannot be read; on every rank.
    """
    if cfg.model.precision == config.AUTO:
        precision = broadcast_object(agree(lambda: _choose(cfg, device) if rank == 0 else None))
        return config.resolve_auto(cfg, precision), deepspeed_json.add_precision(ds_config, precision)
    if cfg.model.precision == "bfloat16" and device.type == "cpu" and rank == 0:
        rates = _rates(cfg)
        if 2 * rates.bfloat16 < rates.float32:
            logger.warning(
                "model.precision bfloat16 is slow on this CPU (%s). Set model.precision to float32 or auto, in a new run.dir",
                rates,
            )
    return cfg, ds_config


def _choose(cfg: Config, device: torch.device) -> Precision:
    """The type for `auto`; logs it with the reason."""
    precision, reason = _continued(cfg)
    if precision == config.AUTO:
        if device.type != "cpu":
            precision, reason = "bfloat16", f"on {device.type}"
        else:
            rates = _rates(cfg)
            precision, reason = rates.faster, str(rates)
    logger.debug("model.precision auto: %s (%s)", precision, reason)
    return precision


def _continued(cfg: Config) -> tuple[Precision, str]:
    """The type of what the run continues and where it is written; `auto` for a fresh start."""
    owner = Path(cfg.run.dir) / "config.yaml"
    if owner.is_file():
        return config.load(owner).model.precision, f"as in {owner}"
    source = cfg.run.branch_from if cfg.run.resume in ("auto", "never") else cfg.run.resume
    if source:
        manifest = check_files(Path(source), (0, 0))
        if "config" in manifest:
            return config.from_text(manifest["config"], source).model.precision, f"as in {source}"
    return config.AUTO, ""


def _rates(cfg: Config) -> cpu.Rates:
    size = size_of(cfg.model)
    return cpu.measure_rates(size.width, size.mlp_hidden)
