"""One rung of a ladder: a run with the ladder's base configuration and the changes of its model and budget."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ijepa_ds import config
from ijepa_ds.config import BatchPlan, Config, ConfigError, deepspeed_json, published
from ijepa_ds.config.yaml_tree import Item
from ijepa_ds.examples import shipped
from ijepa_ds.scale.written import place

_LONG = 10**9  # steps; longer than any warm-up or cool-down, for loading a configuration before its length is known


@dataclass(frozen=True)
class Rung:
    """One run of the ladder.

    Attributes:
        name: "model/budget", also its folder below the ladder's folder.
        images: samples seen: the ladder file's number rounded down to whole batches.
        cfg: the run.
        batch: split of the global batch.
        ds_config: the complete DeepSpeed configuration.
        command: starts the run; None for ladders that are only planned.
        nodes: machines.
        gpus: devices per machine.
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
        assert self.cfg.optimization.steps is not None  # `Builder` sets them
        return self.cfg.optimization.steps


@dataclass
class Builder:
    """Builds rungs; collects problems of their configurations with file and line.

    Attributes:
        root: content of the ladder file.
        general: its section `ladder`.
        overrides: from the command line; they override the file.
        problems: one line each.
    """

    root: Item
    general: Mapping[str, Any]
    overrides: Sequence[str]
    problems: list[str] = field(default_factory=list)

    def rung(
        self, name: str, places: Sequence[tuple[str, ...]], model: Mapping[str, Any], budget: Mapping[str, Any]
    ) -> Rung | None:
        """Build one rung; None if it has problems."""
        use = {"nodes": 1, "gpus_per_node": 1, "gpu": "h100", "launch": None, **self.general, **model}
        use |= {key: str(shipped(use[key])) for key in ("config", "deepspeed_config")}
        changes = list(self._changes(places, (self.general, model, *([budget] if budget is not model else []))))
        folder = str(Path(self.general["out"]) / name)
        changes.append((f"run.dir={folder}", place(self.root, "ladder", "out")))
        world = use["nodes"] * use["gpus_per_node"]
        images = place(self.root, *places[-1], "images")
        try:
            probe, _ = self._load(use["config"], [*changes, *_length(_LONG, {}, images)])
            size = probe.optimization.batch_size
            steps = budget["images"] // size
            if not steps:
                raise ConfigError([f"{images}: images: {budget['images']} are fewer than one batch of {size}"])
            cfg, texts = self._load(use["config"], [*changes, *_length(steps, self.general, images)])
            batch = config.check(cfg, world)
            ds_config = deepspeed_json.load_deepspeed(Path(use["deepspeed_config"]), cfg, batch)
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
        """Pairs (override, place in the file); later ones win."""
        for names, section in zip([("ladder",), *places], sections, strict=True):
            for text in section.get("overrides", ()):
                yield text, place(self.root, *names, "overrides")
        for text in self.overrides:
            yield text, "command line"

    def _load(self, path: str, changes: Sequence[tuple[str, str]]) -> tuple[Config, list[str]]:
        texts, where = [text for text, _ in changes], dict(changes)
        try:
            return published.load_any(Path(path), texts)[0], texts
        except ConfigError as error:
            lines = []
            for line in error.problems:
                text = next((text for text in where if line.startswith(f"override {text}: ")), None)
                lines.append(f"{where[text]}: {line}" if text else line)
            raise ConfigError(lines) from error


def _length(steps: int, shares: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """Overrides for the length of a run; warm-up and cool-down change only if the ladder gives their share."""
    texts = ["optimization.epochs=null", f"optimization.steps={steps}"]
    if "warmup" in shares:
        texts += ["optimization.warmup_epochs=null", f"optimization.warmup_steps={round(shares['warmup'] * steps)}"]
    if "cooldown" in shares:
        texts.append(f"optimization.cooldown_steps={round(shares['cooldown'] * steps)}")
    return [(text, where) for text in texts]


def _command(use: Mapping[str, Any], overrides: Sequence[str]) -> tuple[str, ...] | None:
    """Launch command of a rung."""
    if not use["launch"]:
        return None
    words = shlex.split(use["launch"].format(nodes=use["nodes"], gpus_per_node=use["gpus_per_node"]))
    return (*words, "--config", use["config"], "--deepspeed_config", use["deepspeed_config"], *overrides)
