"""From a YAML file and overrides to a checked `Config`; all problems are collected and raised at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ijepa_ds.config import checks, yaml_tree
from ijepa_ds.config.schema import Config, ConfigError, Problem
from ijepa_ds.config.yaml_tree import Item
from ijepa_ds.examples import shipped
from ijepa_ds.shown import is_text, shown


def load(path: Path, overrides: Sequence[str] = (), world_size: int | None = None) -> Config:
    """Read one run.

    Args:
        path: YAML file with the keys of `schema.Config`.
        overrides: `section.key=value` texts, values as YAML scalars or lists; the last one wins.
        world_size: number of devices, to check the batch against it.

    Returns:
        The configuration, with absolute paths: relative ones are relative to the current directory, `~` is expanded.

    Raises:
        ConfigError: one line for each problem: `file.yaml:12: optimization.lrr: unknown key; did you mean 'lr'?`
    """
    root, found = yaml_tree.read(path)
    if is_published(root):
        text = "an experiment file of the published code, which only the training command translates"
        raise ConfigError([f"{path}: {text}; use the config.yaml that it writes into run.dir"])
    return assemble(root, found, overrides, world_size)


def load_config(file: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read one run, from Python.

    Args:
        file: YAML file, or the name of a shipped one: `configs/quickstart.yaml`.
        overrides: as in `load`.

    Raises:
        ConfigError: as `load`.
    """
    return load(shipped(str(file)), overrides)


def stored(path: Path) -> Config:
    """Read the `config.yaml` of a run's directory; as `from_text`.

    Raises:
        ConfigError: as `load`.
    """
    return from_text(yaml_tree.read_text(path), str(path))


def from_text(text: str, label: str) -> Config:
    """Read a text that `saving.to_text` made; `label` names it in messages."""
    root, found = yaml_tree.parse(text, label)
    return assemble(root, found, _former_gate(root))


def _former_gate(root: Item) -> list[str]:
    """Overrides for a stored configuration, which has every key of its day; without `model.gate`, the gate was GELU."""
    section = root.value.get("model")
    model = yaml_tree.plain(section) if section is not None else None
    if not isinstance(model, dict) or "mlp_hidden" not in model or "predictor" not in model:  # written by hand
        return []
    return ["model.gate=gelu"] if model.get("swiglu") is True and "gate" not in model else []


def is_published(root: Item) -> bool:
    """Whether a tree is an experiment file of the published code: only they have `meta.model_name`."""
    meta = root.value.get("meta")
    return meta is not None and "model_name" in (meta.section or {})


def assemble(root: Item, found: Sequence[str], overrides: Sequence[str] = (), world_size: int | None = None) -> Config:
    """Apply overrides to a tree, fill the schema, check it.

    Args:
        root: the written values; changed in place.
        found: earlier problems, raised together with the new ones.
        overrides: as in `load`.
        world_size: as in `load`.

    Raises:
        ConfigError: one line for each problem.
    """
    lines = [*found, *yaml_tree.apply_overrides(root, overrides)]
    cfg, wrong = checks.examine(yaml_tree.plain(root), world_size)
    lines += placed(root, wrong)
    if lines:
        raise ConfigError(lines)
    run, model = cfg.run, cfg.model
    if text := _unusable(absolute(run.dir), absolute(cfg.data.source)):
        raise ConfigError([f"{yaml_tree.where(root, 'run.dir')}: run.dir: {shown(absolute(run.dir))} {text}"])
    resume = run.resume if run.resume in ("auto", "never") else absolute(run.resume)
    branch = run.branch_from and absolute(run.branch_from)
    return replace(
        cfg,
        run=replace(run, dir=absolute(run.dir), resume=resume, branch_from=branch),
        model=replace(model, init_from=model.init_from and absolute(model.init_from)),
        data=replace(cfg.data, source=absolute(cfg.data.source)),
    )


def _unusable(run_dir: str, source: str) -> str:
    """Why an absolute path cannot be the folder of a run on the images of `source`; empty if it can."""
    if not is_text(run_dir):  # by the current directory, or by a variable in it
        return "is not UTF-8, which TensorBoard requires; choose another folder"
    if os.path.dirname(run_dir) == run_dir:
        return "is the root of the file system; name a folder of its own, such as runs/first"
    if run_dir == source:
        return "is the folder of the images, data.source; name another, or the images of a later start are others"
    return ""


def placed(root: Item, problems: Sequence[Problem]) -> list[str]:
    """Problems as lines that begin with the place of their key."""
    return [f"{yaml_tree.where(root, problem.keys[0])}: {problem}" for problem in problems]


def absolute(path: str) -> str:
    """A path of the configuration against the current directory, `~` expanded."""
    return os.path.abspath(os.path.expanduser(path))
