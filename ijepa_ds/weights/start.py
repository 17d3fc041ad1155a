"""Initial weights of a run from other weights (`model.init_from`), checked against its configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa_ds import config
from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size, size_of
from ijepa_ds.model.vit import initial_value
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.open import open_source
from ijepa_ds.weights.resize import resized, with_channels
from ijepa_ds.weights.source import Source


@dataclass(frozen=True, kw_only=True)
class Start:
    """Initial values by parameter. Tensors are read lazily: a rank reads only what its slices need.

    Attributes:
        source: the weights, already resized to the run's image and patch size.
        context: part used for the context encoder.
        target: part used for the target encoder.
        seed: for the predictor, where the source has none.
        notes: remarks for the log, one sentence each.
    """

    source: Source
    context: str
    target: str
    seed: int
    notes: tuple[str, ...]

    def student(self, name: str, shape: torch.Size) -> Tensor:
        """Initial value of a trained parameter, `encoder.X` or `predictor.X`, of any floating-point type."""
        part, _, rest = name.partition(".")
        if part == "encoder":
            return self.source.parts[self.context][rest]
        if "predictor" in self.source.parts and not rest.startswith("projector."):  # projectors are not exported
            return self.source.parts["predictor"][rest]
        return initial_value(name, shape, self.seed)

    def teacher(self, name: str) -> Tensor:
        """Initial value of a parameter of the target encoder."""
        return self.source.parts[self.target][name]

    def digest(self) -> str:
        """Checksum of the smaller tensors of each part; ranks compare it."""
        total = hashlib.sha256()
        for label, tensors in sorted(self.source.parts.items()):
            for name in sorted(tensors):
                if name.endswith("bias") or "norm" in name:
                    total.update(f"{label}/{name}".encode() + tensors[name].float().numpy().tobytes())
        return total.hexdigest()[:16]


def resolve_position_grid(cfg: Config) -> Config:
    """Set `model.position_grid` where the weights of `model.init_from` were trained on another grid.

    A resumed run takes the value from its `config.yaml` and does not need the weights.
    """
    if cfg.model.init_from is None or cfg.model.position_grid is not None:
        return cfg
    begun = Path(cfg.run.dir) / "config.yaml"
    if begun.is_file():
        learnt = config.load(begun, []).model.position_grid
    else:
        learnt = open_source(cfg.model.init_from, size_of(cfg.model).heads).position_grid
    return replace(cfg, model=replace(cfg.model, position_grid=None if learnt == cfg.grid else learnt))


def open_start(cfg: Config, path: str | None = None, verify: bool = True) -> Start:
    """Open the weights of `model.init_from` and check that they fit the model.

    Args:
        cfg: the run, after `resolve_position_grid`.
        path: opened instead of `model.init_from`: the checkpoint that rank 0 chose.
        verify: compare the checksums of a run's checkpoint.

    Raises:
        WeightsError: the weights cannot be read, or do not fit; lists all differences.
        CheckpointError: a run without a usable checkpoint.
    """
    assert cfg.model.init_from is not None
    path = path or cfg.model.init_from
    try:
        source = open_source(path, size_of(cfg.model).heads, verify=verify)
    except WeightsError as error:
        raise WeightsError(f"model.init_from: {error}") from error
    encoders = [part for part in source.parts if part != "predictor"]
    if not encoders:
        raise WeightsError(f"model.init_from: {path} has no encoder (it has {', '.join(source.parts) or 'no weights yet'})")
    problems = [*_encoder_problems(cfg, source), *_predictor_problems(cfg, source)]
    if problems:
        raise WeightsError(f"model.init_from: {path} does not fit this model: " + "; ".join(problems))
    # the run's own setting wins
    source = replace(source, position_grid=cfg.model.position_grid or cfg.grid)
    source = resized(source, cfg.data.crop_size, cfg.model.patch_size)
    if cfg.model.init_channels:
        source = with_channels(source, cfg.model.channels, cfg.model.init_channels)
    context = "context" if "context" in encoders else encoders[0]
    target = "target" if "target" in encoders else encoders[0]
    notes = (*source.notes, *_notes(cfg, source, context, target))
    return Start(source=source, context=context, target=target, seed=cfg.run.seed, notes=notes)


def _encoder_problems(cfg: Config, source: Source) -> list[str]:
    here, there = _shape(size_of(cfg.model)), _shape(source.size)
    if cfg.model.init_channels:
        there["channels"] = here["channels"]
    hint = " (model.init_channels says how to convert it)" if here["channels"] != there["channels"] else ""
    return [
        f"model.{key} is {here[key]} here, {there[key]} there" + (hint if key == "channels" else "")
        for key in here
        if here[key] != there[key]
    ]


def _shape(size: Size) -> dict[str, Any]:
    """Fields that must agree. The initial value of LayerScale and the drop rate may differ."""
    return vars(replace(size, layer_scale=float(size.layer_scale > 0), drop_path=0.0))


def _predictor_problems(cfg: Config, source: Source) -> list[str]:
    there, here = source.predictor, cfg.model.predictor
    if "predictor" not in source.parts or there is None:
        return []
    heads = here.heads or size_of(cfg.model).heads
    pairs: Mapping[str, tuple[int, int | None]] = {
        "width": (here.width, there.width),
        "depth": (here.depth, there.depth),
        "heads": (heads, there.heads if there.heads is not None else heads),
    }
    problems = [f"model.predictor.{key} is {a} here, {b} there" for key, (a, b) in pairs.items() if a != b]
    ours, theirs = cfg.targets.width(size_of(cfg.model).width), there.outputs or source.size.width
    if ours != theirs:
        problems.append(f"targets.layers and targets.combine make predictions of {ours} values here, {theirs} there")
    if problems:
        problems.append(
            "to start with a fresh predictor, name an encoder alone: ijepa-ds export --run "
            f"{source.path} --which target --format safetensors --out ENCODER, then model.init_from=ENCODER"
        )
    return problems


def _notes(cfg: Config, source: Source, context: str, target: str) -> list[str]:
    notes = []
    if context == target:
        notes.append(f"one encoder ({context}): context and target encoder both start from it")
    if "predictor" not in source.parts:
        notes.append("no predictor: it is initialised from run.seed")
    if (source.mean, source.std) != (cfg.data.mean, cfg.data.std):
        notes.append(
            f"its pixels were normalised with mean {list(source.mean)}, deviation {list(source.std)}; this run's are "
            f"{list(cfg.data.mean)}, {list(cfg.data.std)} (data.mean, data.std)"
        )
    if source.eps != 1e-6:
        notes.append(f"its LayerNorms had eps {source.eps:g}, here it is 1e-6")
    return notes
