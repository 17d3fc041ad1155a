"""A common view of every weight format: parts, tensors under our names, and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ijepa_ds.config import Config
from ijepa_ds.config.sizes import Size
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.weights import check
from ijepa_ds.weights.check import PredictorSize
from ijepa_ds.weights.facts import IMAGENET_MEAN, IMAGENET_STD, WeightsError, scan_options


@dataclass(frozen=True, kw_only=True)
class Source:
    """Opened weights; tensors are read lazily.

    Attributes:
        path: what was opened.
        kind: run, export, published, timm or hugging face.
        parts: context, target, predictor, or unlabelled where the file does not say which encoder it holds;
            tensors by the parameter names of `model.vit` (position tables left out).
        size: encoder size.
        patch_size: pixels.
        grid: patches along a side of an image.
        position_grid: patches along a side in training.
        predictor: predictor size; None where there is none.
        step: optimiser steps; None where unknown.
        config: the run's configuration, where known.
        notes: assumptions made while reading.
    """

    path: Path
    kind: str
    parts: Mapping[str, Mapping[str, Tensor]]
    size: Size
    patch_size: int
    grid: int
    position_grid: int
    predictor: PredictorSize | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    eps: float = 1e-6
    step: int | None = None
    config: Config | None = None
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> Values:
        """How images become the encoder's channels.

        Raises:
            WeightsError: the channels are not RGB, and the file does not say.
        """
        if self.config is None and self.size.channels != 3:
            raise WeightsError(f"{self.path}: does not say how images become its {self.size.channels} channels; name the run")
        return Values.of(self.config.data) if self.config else PLAIN

    def scan_options(self, own_images: bool = False) -> ScanOptions:
        """As `facts.scan_options`.

        Raises:
            WeightsError: as `values`.
        """
        return replace(scan_options(self.config, own_images), values=self.values)

    def choose(self, which: str | None) -> str:
        """Return the part to use for `which`; None: the target, or the only encoder.

        Raises:
            WeightsError: there is no such part.
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
                f"{self.path}: holds one encoder and does not say which it is, so '{which}' is not available; leave "
                "the choice out to use it (conversions by other projects hold the context encoder)"
            )
        raise WeightsError(f"{self.path}: has no {which} (it has {', '.join(self.parts) or 'no weights yet'})")


@dataclass(kw_only=True)
class Description:
    """Metadata found beside the tensors of a file."""

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
    description: Description,
    known: tuple[Size, int, int, int] | None = None,
) -> Source:
    """Build a `Source`, after checking the parts against each other and against the networks.

    Args:
        path: what was opened.
        parts: tensors of each part, under our names.
        description: metadata of the file.
        known: encoder size, patch size, grid and training grid; None: inferred from the tensors.

    Raises:
        WeightsError: the parts are not those of an I-JEPA model, or do not fit together.
    """
    encoders = {label: tensors for label, tensors in parts.items() if label != "predictor"}
    notes = list(description.notes)
    if not encoders and not known:
        raise WeightsError(f"{path}: no encoder in it (it has {', '.join(parts)} alone)")
    if known:
        size, patch, grid, learnt = known
    else:
        size, patch, note = check.infer_size(next(iter(encoders.values())), description.heads, str(path))
        grid, learnt = check.infer_grids(next(iter(encoders.values()))["pos_embed"], str(path))
        notes += [note] if note else []
    mean, std = description.mean, description.std
    if size.channels != 3 and (mean is None or std is None):
        mean, std = (0.0,) * size.channels, (1.0,) * size.channels
        notes.append("mean and deviation of the pixels: 0 and 1 (the file does not say)")
    if mean is None or std is None:
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        notes.append("mean and deviation of the pixels: ImageNet's, as in the published runs (the file does not say)")
    shapes = check.encoder_shapes(size, patch)
    for label, tensors in encoders.items():
        check.check_parameters(tensors, shapes, {"pos_embed"}, f"{path} ({label})")
        if "pos_embed" in tensors and check.infer_grids(tensors["pos_embed"], f"{path} ({label})") != (grid, learnt):
            raise WeightsError(f"{path}: the encoders' positions are of different grids")
    predictor = None
    if "predictor" in parts:
        where = f"{path} (predictor)"
        predictor = check.infer_predictor_size(parts["predictor"], description.predictor_heads, where)
        tables = {"predictor_pos_embed"}
        check.check_parameters(parts["predictor"], check.predictor_shapes(size, predictor), tables, where)
        if "predictor_pos_embed" in parts["predictor"]:
            found = check.infer_grids(parts["predictor"]["predictor_pos_embed"], where)
            if found != (grid, learnt):
                raise WeightsError(f"{where}: positions of a {found[0]} x {found[0]} grid, the encoder's are {grid} x {grid}")
    return Source(
        path=path,
        kind=description.kind,
        parts=parts,
        size=size,
        patch_size=patch,
        grid=grid,
        position_grid=learnt,
        predictor=predictor,
        mean=tuple(mean),
        std=tuple(std),
        eps=description.eps,
        step=description.step,
        config=description.config,
        notes=tuple(notes),
    )
