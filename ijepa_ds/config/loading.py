"""From a YAML file and overrides to a checked `Config`; every problem is collected and raised at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ijepa_ds.config import checks, yaml_tree
from ijepa_ds.config.build import build
from ijepa_ds.config.schema import Config, ConfigError
from ijepa_ds.config.yaml_tree import Item


def load(path: Path, overrides: Sequence[str] = (), world_size: int | None = None) -> Config:
    """Read one run.

    Args:
        path: YAML file in the schema of `config_schema`.
        overrides: `section.key=value` texts, values as YAML scalars or lists; the last one wins.
        world_size: number of devices, if the batch is to be checked against it already.

    Returns:
        The configuration; `run.dir`, `data.source`, `model.init_from`, `run.branch_from` and a path in `run.resume` are made
        absolute against the current directory (`~` expanded).

    Raises:
        ConfigError: one line a problem: `file.yaml:12: optimization.lrr: unknown key; did you mean 'lr'?`
    """
    root, found = yaml_tree.read(path)
    if is_published(root):
        raise ConfigError(
            [
                f"{path}: an experiment file of the published code, which only the training command "
                "translates; use the config.yaml that it writes into run.dir"
            ]
        )
    return assemble(root, found, overrides, world_size)


def from_text(text: str, label: str) -> Config:
    """The same for a text that `config_save.to_text` made; `label` names it in messages."""
    root, found = yaml_tree.parse(text, label)
    return assemble(root, found, [])


def is_published(root: Item) -> bool:
    """Whether a tree is an experiment file of the published code: only they have `meta.model_name`."""
    meta = root.value.get("meta")
    return meta is not None and "model_name" in (meta.section or {})


def assemble(root: Item, found: Sequence[str], overrides: Sequence[str], world_size: int | None = None) -> Config:
    """Apply overrides to a tree, fill the schema, check it.

    Args:
        root: the written values; changed in place.
        found: problems met before, raised together with the new ones.
        overrides: as in `load`.
        world_size: as in `load`.

    Raises:
        ConfigError: anything at all is wrong.
    """
    lines = [*found, *yaml_tree.apply_overrides(root, overrides)]
    cfg, wrong, unusable = build(root)
    lines += wrong
    for problem in checks.problems(cfg, world_size):
        if not any(_overlap(key, bad) for key in problem.keys for bad in unusable):
            lines.append(f"{yaml_tree.where(root, problem.keys[0])}: {problem}")
    if lines:
        raise ConfigError(lines)
    branch = absolute(cfg.run.branch_from) if cfg.run.branch_from else None
    run = replace(cfg.run, dir=absolute(cfg.run.dir), resume=_absolute_checkpoint(cfg.run.resume), branch_from=branch)
    model = replace(cfg.model, init_from=absolute(cfg.model.init_from)) if cfg.model.init_from else cfg.model
    return replace(cfg, run=run, model=model, data=replace(cfg.data, source=absolute(cfg.data.source)))


def _overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or the section around it."""
    return key == other or key.startswith(other + ".") or other.startswith(key + ".")


def absolute(path: str) -> str:
    """A path of the configuration against the current directory, `~` expanded."""
    return os.path.abspath(os.path.expanduser(path))


def _absolute_checkpoint(resume: str) -> str:
    return resume if resume in ("auto", "never") else absolute(resume)
