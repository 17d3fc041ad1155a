"""A ladder file: models, budgets of images, machines and evaluation (docs/scaling.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ijepa_ds.config import ConfigError, yaml_tree
from ijepa_ds.config.build import suggest
from ijepa_ds.config.loading import absolute
from ijepa_ds.config.yaml_tree import Item
from ijepa_ds.scale.rung import Builder, Rung
from ijepa_ds.scale.written import place, take

# Keys of the section `ladder` for all rungs; a model may override them.
_MACHINE = {
    "config": "text",
    "deepspeed_config": "text",
    "launch": "text",
    "nodes": "count",
    "gpus_per_node": "count",
    "gpu": "text",
    "overrides": "texts",
}
_LADDER = {"out": "text", **_MACHINE, "warmup": "share", "cooldown": "share", "rungs": "texts"}
_BUDGET = {"images": "count", "overrides": "texts"}
_EVAL = {"train": "text", "test": "text", "score": "text", "options": "texts"}
_SECTIONS = ("ladder", "models", "budgets", "eval", "next")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Evaluation:
    """Evaluation of a finished rung: `ijepa-ds eval all` with these options; laws are fitted to `score`."""

    train: str
    test: str
    score: str = "20-NN"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ladder:
    """A checked ladder; `next` is only predicted, never run."""

    path: Path
    out: Path
    rungs: tuple[Rung, ...]
    next: Rung | None
    evaluation: Evaluation | None

    def chosen(self, names: Sequence[str]) -> tuple[Rung, ...]:
        """The rungs with these names; all rungs without names.

        Raises:
            ConfigError: unknown names.
        """
        known = {rung.name: rung for rung in self.rungs}
        wrong = [name for name in names if name not in known]
        if wrong:
            raise ConfigError([f"{self.path}: no rung '{name}' (there are: {', '.join(known)})" for name in wrong])
        return tuple(known[name] for name in names) or self.rungs


def read(path: Path, overrides: Sequence[str] = ()) -> Ladder:
    """Read a ladder and the configuration of every rung.

    Args:
        path: the YAML file.
        overrides: `section.key=value` of the rungs' configurations; they override the file.

    Raises:
        ConfigError: lists all problems with file and line.
    """
    root, problems = yaml_tree.read(path)
    entries = root.section or {}
    problems += [
        f"{entry.where}: {name}: unknown section{suggest(name, _SECTIONS) or ' (known: ' + ', '.join(_SECTIONS) + ')'}"
        for name, entry in entries.items()
        if name not in _SECTIONS
    ]
    ladder = entries.get("ladder", Item({}, str(path)))
    general = take(ladder, "ladder", _LADDER, ("out", "config", "deepspeed_config"), problems)
    models = _named(entries, "models", path, _MACHINE, (), problems)
    budgets = _named(entries, "budgets", path, _BUDGET, ("images",), problems)
    evaluation = _evaluation(entries, problems)
    following = None
    if "next" in entries:
        following = take(entries["next"], "next", {**_MACHINE, "images": "count"}, ("images",), problems)
    pairs = _pairs(ladder, general, models, budgets, problems)
    if problems:
        raise ConfigError(problems)
    builder = Builder(root, general, overrides)
    rungs = [builder.rung(f"{m}/{b}", [("models", m), ("budgets", b)], models[m], budgets[b]) for m, b in pairs]
    predicted = builder.rung("next", [("next",)], following, following) if following else None
    if builder.problems:
        raise ConfigError(list(dict.fromkeys(builder.problems)))
    return Ladder(path, Path(absolute(general["out"])), tuple(rung for rung in rungs if rung), predicted, evaluation)


def _named(
    entries: Mapping[str, Item], name: str, path: Path, known: Mapping[str, str], required: Sequence[str], problems: list[str]
) -> dict[str, dict[str, Any]]:
    """The entries of `models` or `budgets`."""
    item = entries.get(name)
    if item is None or not item.section:
        problems.append(f"{item.where if item else path}: {name}: missing; name at least one")
        return {}
    found = {}
    for key, entry in item.section.items():
        if not _NAME.fullmatch(key):
            problems.append(f"{entry.where}: {name}.{key}: use letters, digits, '.', '_' and '-': it names folders")
        found[key] = take(entry, f"{name}.{key}", known, required, problems)
    return found


def _evaluation(entries: Mapping[str, Item], problems: list[str]) -> Evaluation | None:
    if "eval" not in entries:
        return None
    values = take(entries["eval"], "eval", _EVAL, ("train", "test"), problems)
    if not {"train", "test"} <= values.keys():
        return None
    return Evaluation(**values | {"options": tuple(values.get("options", ()))})


def _pairs(
    ladder: Item, general: Mapping[str, Any], models: Mapping[str, Any], budgets: Mapping[str, Any], problems: list[str]
) -> list[tuple[str, str]]:
    """(model, budget) of every rung: the listed ones, or all combinations."""
    if "rungs" not in general:
        return [(model, budget) for model in models for budget in budgets]
    pairs, where = [], place(ladder, "rungs")
    for text in general["rungs"]:
        model, slash, budget = text.partition("/")
        if not slash or model not in models or budget not in budgets:
            known = f"models: {', '.join(models)}; budgets: {', '.join(budgets)}"
            problems.append(f"{where}: ladder.rungs: '{text}' is not MODEL/BUDGET of this file ({known})")
        elif (model, budget) in pairs:
            problems.append(f"{where}: ladder.rungs: '{text}' is listed twice")
        pairs.append((model, budget))
    return pairs
