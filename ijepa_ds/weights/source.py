"""One view of every format: which parts there are, their tensors under our names, and the facts beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size
from ijepa_ds.weights import check
from ijepa_ds.weights.check import PredictorSize
from ijepa_ds.weights.facts import IMAGENET_MEAN, IMAGENET_STD, WeightsError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Opened weights. Tensors are read when asked for.

    Attributes:
        path: what was opened.
        kind: run, export, published, timm or hugging face.
        parts: context, target, predictor, or unlabelled for an encoder of which the file does not say which it is;
            each under the names of `vit` (position tables left out).
        size: the encoders' shape.
        patch_size: pixels.
        grid: patches along a side of an image.
        position_grid: the grid on which the positions were learnt.
        predictor: its shape, where there is one.
        step: optimiser steps; None where unknown.
        config: of the run, where known.
        notes: what had to be assumed.
    """

    path: Path
    kind: str
    parts: Mapping[str, Mapping[str, Tensor]]
    size: Size
    patch_size: int
    grid: int
    position_grid: int
    predictor: PredictorSize | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    eps: float = 1e-6
    step: int | None = None
    config: Config | None = None
    notes: tuple[str, ...] = ()

    def choose(self, which: str | None) -> str:
        """The part that holds the encoder asked for; None: the target, or else the one encoder there is.

        Raises:
            WeightsError: it is not there.
        """
        encoders = [name for name in self.parts if name != "predictor"]
        if which is None:
            if "target" not in encoders and len(encoders) != 1:
                raise WeightsError(f"{self.path}: no encoder in it (it has {', '.join(self.parts) or 'nothing'})")
            return "target" if "target" in encoders else encoders[0]
        if which in self.parts:
            return which
        if encoders == ["unlabelled"]:
            raise WeightsError(
                f"{self.path}: holds one encoder and does not say which it is, so '{which}' cannot be asked for; leave "
                "it out to take it (other projects' conversions hold the context encoder)"
            )
        raise WeightsError(f"{self.path}: has no {which} (it has {', '.join(self.parts) or 'no weights yet'})")


@dataclass(kw_only=True)
class Told:
    """What a file's surroundings tell about it."""

    kind: str
    heads: int | None = None
    predictor_heads: int | None = None
    mean: Any = None
    std: Any = None
    eps: float = 1e-6
    step: int | None = None
    config: Config | None = None
    notes: list[str] = field(default_factory=list)


def assemble(
    path: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    told: Told,
    known: tuple[Size, int, int, int] | None = None,
) -> Source:
    """Check the parts of a file against each other and against the networks."""
    encoders = {label: tensors for label, tensors in parts.items() if label != "predictor"}
    notes = list(told.notes)
    if known:
        size, patch, grid, learnt = known
    else:
        size, patch, note = check.size_in(next(iter(encoders.values())), told.heads, str(path))
        grid, learnt = check.learnt_grid(next(iter(encoders.values()))["pos_embed"], str(path))
        notes += [note] if note else []
    if told.mean is None or told.std is None:
        notes.append("mean and deviation of the pixels: ImageNet's, as in the published runs (the file does not say)")
    shapes = check.encoder_shapes(size, patch)
    for label, tensors in encoders.items():
        check.check_names(tensors, shapes, {"pos_embed"}, f"{path} ({label})")
        if "pos_embed" in tensors and check.learnt_grid(tensors["pos_embed"], f"{path} ({label})") != (grid, learnt):
            raise WeightsError(f"{path}: the encoders' positions are of different grids")
    predictor = None
    if "predictor" in parts:
        where = f"{path} (predictor)"
        predictor = check.predictor_size_in(parts["predictor"], told.predictor_heads, where)
        tables = {"predictor_pos_embed"}
        check.check_names(parts["predictor"], check.predictor_shapes(size, predictor), tables, where)
        if "predictor_pos_embed" in parts["predictor"]:
            found = check.learnt_grid(parts["predictor"]["predictor_pos_embed"], where)
            if found != (grid, learnt):
                raise WeightsError(f"{where}: positions of a {found[0]} x {found[0]} grid, the encoder's are {grid} x {grid}")
    return Source(
        path=path,
        kind=told.kind,
        parts=parts,
        size=size,
        patch_size=patch,
        grid=grid,
        position_grid=learnt,
        predictor=predictor,
        mean=tuple(told.mean or IMAGENET_MEAN),  # type: ignore[arg-type]
        std=tuple(told.std or IMAGENET_STD),  # type: ignore[arg-type]
        eps=told.eps,
        step=told.step,
        config=told.config,
        notes=tuple(notes),
    )
