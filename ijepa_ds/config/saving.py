"""Writing a configuration, and comparing the tasks that two of them define."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from ijepa_ds.config.build import nodes
from ijepa_ds.config.schema import Config, flatten

# With optimization.schedule wsd these change no step before the cool-down; `run_dir` checks that none has begun.
LENGTH = ("optimization.epochs", "optimization.steps", "optimization.cooldown_steps", "optimization.final_lr")


def to_text(cfg: Config) -> str:
    """All keys as YAML; `loading.load` reads it back equal."""
    return "".join(_lines(cfg, ""))


def _lines(section: Any, indent: str) -> Iterator[str]:
    for spec in fields(section):
        value = getattr(section, spec.name)
        if is_dataclass(value):
            yield f"{indent}{spec.name}:\n"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{spec.name}: {scalar(value)}\n"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def scalar(value: Any) -> str:
    """A value as YAML in one line."""
    text = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("...\n").strip()


def save_resolved(cfg: Config, path: Path) -> None:
    """Write `to_text` to `path`, atomically."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(to_text(cfg), encoding="utf-8")
    os.replace(draft, path)


def _task(cfg: Config) -> dict[str, Any]:
    """The values that may not change when a run resumes.

    Free are folders, logging, and how the work is distributed over devices. The data index identifies the images, not the
    name of their folder.
    """
    # a warm-up that is a share of the run depends on its length from the first step on
    free = LENGTH if cfg.optimization.schedule == "wsd" and not cfg.objective.context_warmup else ()
    return {key: value for key, value in flatten(cfg).items() if key not in free and "free" not in nodes()[key]}


def fingerprint(cfg: Config) -> str:
    """16 hexadecimal digits that change with every value that changes the training result.

    Left out: keys that may change when a run resumes (with `optimization.schedule: wsd` also its length), and keys added
    after 0.1.0 that have their defaults.
    """
    task = {key: _plain(value) for key, value in _task(cfg).items()}
    used = {key: value for key, value in task.items() if "later" not in nodes()[key] or value != nodes()[key]["default"]}
    if cfg.model.swiglu:  # runs of before there was `model.gate` have GELU
        used = {key: value for key, value in used.items() if key != "model.gate"}
        used |= {"model.gate": "silu"} if cfg.model.gate == "silu" else {}
    return hashlib.sha256(json.dumps(used, sort_keys=True).encode()).hexdigest()[:16]


def difference(before: Config, after: Config) -> list[str]:
    """The keys in which two tasks differ, one line each; empty exactly when their fingerprints are equal."""
    compared, old, new = _task(before).keys() | _task(after).keys(), flatten(before), flatten(after)
    return [f"{key}: {scalar(old[key])} -> {scalar(new[key])}" for key in old if key in compared and old[key] != new[key]]
