"""`model.precision: auto` becomes a concrete type before a run starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from ijepa_ds.config.schema import Config

AUTO: Literal["auto"] = "auto"
Precision = Literal["auto", "bfloat16", "float32"]


def resolve_auto(cfg: Config, precision: Precision) -> Config:
    """Replace `model.precision: auto` by `precision`; a configuration that names a type is returned unchanged."""
    return replace(cfg, model=replace(cfg.model, precision=precision)) if cfg.model.precision == AUTO else cfg
