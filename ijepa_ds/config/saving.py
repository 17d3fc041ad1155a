"""Writing a configuration, and telling whether two of them define the same task."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ijepa_ds.config.schema import Config, flatten

# What may change between a run and its continuation: places, logging, and how the work is spread over
# machines. The images themselves are compared by the data index, not by the name of their folder.
_FREE = {
    "run.dir",
    "run.resume",
    "run.branch_from",
    "run.log_every",
    "run.probe_every",
    "run.picture_every",
    "run.checkpoint_every",
    "run.keep_last",
    "run.keep_every",
    "run.hang_timeout",
    "run.max_nonfinite",
    "data.source",
    "data.loader",
    "data.decoder",
    "data.threads",
    "data.prefetch",
    "data.max_pixels",
    "data.max_bad",
    "data.max_bad_share",
    "model.activation_checkpointing",
    "model.recompute",
    "model.compile",
    "optimization.max_micro_batch",
    "eval.every",
    "eval.train",
    "eval.test",
    "eval.k",
    "eval.max_train",
    "eval.max_test",
}
# With optimization.schedule wsd these change nothing before the cool-down: `run_dir` sees to it that none has begun.
LENGTH = ("optimization.epochs", "optimization.steps", "optimization.cooldown_steps", "optimization.final_lr")

# Keys that came after 0.1.0: at these values they change nothing, and stay out of the fingerprint, so that older runs go on.
_LATER = {
    "model.qkv_bias": None,
    "data.color_jitter": (0.0, 0.0, 0.0, 0.0),
    "data.color_jitter_probability": 0.8,
    "data.grayscale": 0.0,
    "data.blur": 0.0,
    "data.blur_sigma": (0.1, 2.0),
    "model.qk_norm": None,
    "model.parallel": None,
    "model.swiglu": False,
    "model.rope": False,
    "model.registers": 0,
    "model.layer_scale": 0.0,
    "model.drop_path": 0.0,
    "model.init_from": None,
    "model.position_grid": None,
    "model.target_precision": "same",
    "data.early_crop_size": None,
    "data.early_steps": 0,
    "optimization.schedule": "cosine",
    "optimization.cooldown_steps": 0,
}


def to_text(cfg: Config) -> str:
    """All keys as YAML; `config_load.load` reads it back equal."""
    return "".join(_lines(cfg, ""))


def _lines(section: Any, indent: str) -> list[str]:
    lines = []
    for spec in fields(section):
        value = getattr(section, spec.name)
        if is_dataclass(value):
            lines += [f"{indent}{spec.name}:\n", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{spec.name}: {_scalar(value)}\n")
    return lines


def _scalar(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def save_resolved(cfg: Config, path: Path) -> None:
    """Write `to_text` to `path`, whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(to_text(cfg), encoding="utf-8")
    os.replace(draft, path)


def _task(cfg: Config) -> dict[str, Any]:
    free = _FREE.union(LENGTH if cfg.optimization.schedule == "wsd" else ())
    return {key: value for key, value in flatten(cfg).items() if key not in free}


def fingerprint(cfg: Config) -> str:
    """16 hexadecimal digits that change with anything that changes what is learned.

    Left out: folders, logging and checkpoint intervals, loader and its threads, activation checkpointing and
    `max_micro_batch`, none of which changes the task; with `optimization.schedule: wsd` also the run's length.
    """
    task = {key: value for key, value in _task(cfg).items() if key not in _LATER or value != _LATER[key]}
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()[:16]


def difference(before: Config, after: Config) -> list[str]:
    """The keys in which two tasks differ, one line each; empty exactly when their fingerprints are equal."""
    compared, old, new = _task(before).keys() | _task(after).keys(), flatten(before), flatten(after)
    return [f"{key}: {_scalar(old[key])} -> {_scalar(new[key])}" for key in old if key in compared and old[key] != new[key]]
