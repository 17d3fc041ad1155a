"""A ladder file: which models are trained on how many images, on what machines, and how they are scored (docs/scaling.md)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ijepa_ds import config, config_deepspeed, config_published, config_yaml
from ijepa_ds.config import BatchPlan, Config, ConfigError
from ijepa_ds.config_build import suggest
from ijepa_ds.config_load import absolute
from ijepa_ds.config_yaml import Item
from ijepa_ds.scale.written import place, take

# What the section `ladder` says for all rungs, and a model may say for itself.
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
    """How a finished rung is scored: `ijepa-ds eval all` with these options; `score` is the one that is fitted."""

    train: str
    test: str
    score: str = "20-NN"
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rung:
    """One run of the ladder.

    Attributes:
        name: "model/budget", also its folder below the ladder's.
        images: samples it sees, at most one batch fewer than the ladder file says.
        cfg: the run.
        batch: how its batch is cut.
        ds_config: the complete DeepSpeed configuration.
        command: starts it; None when the ladder says only what is to be planned.
        nodes: machines.
        gpus: devices of one.
        gpu: their name (`plan.hardware.device_of`).
    """

    name: str
    images: int
    cfg: Config
    batch: BatchPlan
    ds_config: dict[str, Any]
    command: tuple[str, ...] | None
    nodes: int
    gpus: int
    gpu: str

    @property
    def folder(self) -> Path:
        """Its run directory."""
        return Path(self.cfg.run.dir)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        assert self.cfg.optimization.steps is not None  # `_Builder` sets them
        return self.cfg.optimization.steps


@dataclass(frozen=True)
class Ladder:
    """All of it; `next` is predicted, never run."""

    path: Path
    out: Path
    rungs: tuple[Rung, ...]
    next: Rung | None
    evaluation: Evaluation | None

    def chosen(self, names: Sequence[str]) -> tuple[Rung, ...]:
        """The rungs of these names; all of them when none is named.

        Raises:
            ConfigError: names that the ladder does not have.
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
        overrides: `section.key=value` of the rungs' configurations; they win over the file's.

    Raises:
        ConfigError: with everything that is wrong, file and line of each.
    """
    root, problems = config_yaml.read(path)
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
    builder = _Builder(root, general, overrides)
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
    """(model, budget) of every rung: those that are listed, or all."""
    if "rungs" not in general:
        return [(model, budget) for model in models for budget in budgets]
    pairs, where = [], place(ladder, "rungs")
    for text in general["rungs"]:
        model, slash, budget = text.partition("/")
        if not slash or model not in models or budget not in budgets:
            known = f"models: {', '.join(models)}; budgets: {', '.join(budgets)}"
            problems.append(f"{where}: ladder.rungs: '{text}' is not MODEL/BUDGET of this file ({known})")
        elif (model, budget) in pairs:
            problems.append(f"{where}: ladder.rungs: '{text}' stands there twice")
        pairs.append((model, budget))
    return pairs


@dataclass
class _Builder:
    """Makes rungs; what is wrong with their configurations is collected with the place in the ladder file."""

    root: Item
    general: Mapping[str, Any]
    overrides: Sequence[str]
    problems: list[str] = field(default_factory=list)

    def rung(
        self, name: str, places: Sequence[tuple[str, ...]], model: Mapping[str, Any], budget: Mapping[str, Any]
    ) -> Rung | None:
        """One rung, or None when something is wrong with it."""
        use = {"nodes": 1, "gpus_per_node": 1, "gpu": "h100", "launch": None, **self.general, **model}
        changes = list(self._changes(places, (self.general, model, *([budget] if budget is not model else []))))
        folder = str(Path(self.general["out"]) / name)
        changes.append((f"run.dir={folder}", place(self.root, "ladder", "out")))
        world = use["nodes"] * use["gpus_per_node"]
        images = place(self.root, *places[-1], "images")
        try:
            probe = self._load(use["config"], [*changes, *_length(budget["images"], {}, images)])[0]  # long enough for all
            size = probe.optimization.batch_size
            steps = budget["images"] // size
            if not steps:
                raise ConfigError([f"{images}: images: {budget['images']} are fewer than one batch of {size}"])
            cfg, texts = self._load(use["config"], [*changes, *_length(steps, self.general, images)])
            batch = config.check(cfg, world)
            ds_config = config_deepspeed.load_deepspeed(Path(use["deepspeed_config"]), cfg, batch)
        except ConfigError as error:
            self.problems += [
                line if line.startswith(str(images).partition(":")[0]) else f"{images}: {name}: {line}"
                for line in error.problems
            ]
            return None
        return Rung(
            name, steps * size, cfg, batch, ds_config, _command(use, texts), use["nodes"], use["gpus_per_node"], use["gpu"]
        )

    def _changes(self, places: Sequence[tuple[str, ...]], sections: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
        """(override, where it is written), the later wins."""
        for names, section in zip([("ladder",), *places], sections, strict=True):
            for text in section.get("overrides", ()):
                yield text, place(self.root, *names, "overrides")
        for text in self.overrides:
            yield text, "command line"

    def _load(self, path: str, changes: Sequence[tuple[str, str]]) -> tuple[Config, list[str]]:
        texts, where = [text for text, _ in changes], dict(changes)
        try:
            return config_published.load_any(Path(path), texts)[0], texts
        except ConfigError as error:
            lines = []
            for line in error.problems:
                text = next((text for text in where if line.startswith(f"override {text}: ")), None)
                lines.append(f"{where[text]}: {line}" if text else line)
            raise ConfigError(lines) from error


def _length(steps: int, shares: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Overrides that give a run its length; without its share, warm-up or cool-down is the configuration's own."""
    texts = ["optimization.epochs=null", f"optimization.steps={steps}"]
    if "warmup" in shares:
        texts += ["optimization.warmup_epochs=null", f"optimization.warmup_steps={round(shares['warmup'] * steps)}"]
    if "cooldown" in shares:
        texts.append(f"optimization.cooldown_steps={round(shares['cooldown'] * steps)}")
    return [(text, where) for text in texts]


def _command(use: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...] | None:
    """What starts a rung."""
    if not use["launch"]:
        return None
    words = shlex.split(use["launch"].format(nodes=use["nodes"], gpus_per_node=use["gpus_per_node"]))
    return (*words, "--config", use["config"], "--deepspeed_config", use["deepspeed_config"], *overrides)
