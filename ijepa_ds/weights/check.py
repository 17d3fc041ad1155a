"""Checks that tensors are an I-JEPA encoder or predictor: names, shapes, fixed sine-cosine positions."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ijepa_ds.config.sizes import SIZES, Size
from ijepa_ds.model.vit import Encoder, Predictor, sincos_position_embedding
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.unwrap import family

IGNORED = ("head.weight", "head.bias")  # a classification head is not part of the encoder
_SHOWN = 6


@dataclass(frozen=True)
class PredictorSize:
    """Size of a predictor; `heads` is None where unknown, `outputs` where a prediction is as wide as the encoder."""

    width: int
    depth: int
    heads: int | None
    outputs: int | None = None


def infer_size(tensors: Mapping[str, Tensor], heads: int | None, where: str) -> tuple[Size, int, str | None]:
    """Infer encoder size and patch size from tensors; the third value is a note when the heads were looked up.

    Args:
        tensors: under our names.
        heads: attention heads, where known; they cannot be inferred from the tensors.
        where: name of the source in messages.

    Raises:
        WeightsError: no patch embedding or block, or the heads are neither given nor in `config.sizes.SIZES`.
    """
    missing = [n for n in ("patch_embed.proj.weight", "blocks.0.mlp.fc1.weight", "pos_embed") if n not in tensors]
    if missing:
        shown = ", ".join(sorted(tensors)[:_SHOWN]) or "nothing"
        what = f"no {', no '.join(missing)} (it has {shown} ...)"
        half = "a part of an encoder is missing" if len(missing) < 3 and _depth(tensors, "blocks") else "not a ViT encoder"
        raise WeightsError(f"{where}: {half}: {what}{family(tensors)}")
    width, channels, patch = _check_patches(tensors["patch_embed.proj.weight"], where)
    depth = _depth(tensors, "blocks")
    hidden = tensors["blocks.0.mlp.fc1.weight"].shape[0]
    if heads is not None:
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise WeightsError(f"{where}: {heads!r} heads do not divide the width {width} (num_attention_heads, --heads)")
        return Size(width, depth, heads, hidden, channels=channels), patch, None
    for name, row in SIZES.items():
        if (row.width, row.depth, row.mlp_hidden) == (width, depth, hidden):
            note = f"heads: {row.heads}, those of '{name}' (the file does not say; give heads if it has another number)"
            return replace(row, channels=channels), patch, note
    raise WeightsError(
        f"{where}: the file does not say how many attention heads this encoder has (width {width}, depth {depth}, mlp "
        f"{hidden} is no size known here): give it (--heads N; heads=N in Python)"
    )


def _check_patches(weight: Tensor, where: str) -> tuple[int, int, int]:
    """Width, channels and patch size from the patch embedding."""
    shape = list(weight.shape)
    if len(shape) == 4:
        return shape[0], shape[1], shape[2]
    what = {5: "patches of video (a V-JEPA encoder?)", 2: "patches flattened for a linear layer"}.get(len(shape), "no patches")
    raise WeightsError(
        f"{where}: patch_embed.proj.weight is {shape}: {what}; expected [width, channels, patch, patch] of images"
    )


def _depth(tensors: Mapping[str, Tensor], stem: str) -> int:
    found = (re.match(rf"{stem}\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def infer_predictor_size(tensors: Mapping[str, Tensor], heads: int | None, where: str) -> PredictorSize:
    """Infer the predictor size from tensors; arguments and errors as in `infer_size`."""
    if "predictor_embed.weight" not in tensors:
        raise WeightsError(f"{where}: the predictor has no predictor_embed.weight")
    width, encoder = tensors["predictor_embed.weight"].shape
    outputs = tensors["predictor_proj.weight"].shape[0] if "predictor_proj.weight" in tensors else encoder
    return PredictorSize(width, _depth(tensors, "predictor_blocks"), heads, None if outputs == encoder else outputs)


def encoder_shapes(size: Size, patch_size: int) -> dict[str, torch.Size]:
    """Name and shape of every parameter of an encoder."""
    with torch.device("meta"):
        return {name: p.shape for name, p in Encoder(size, patch_size, 1).named_parameters()}


def predictor_shapes(size: Size, predictor: PredictorSize) -> dict[str, torch.Size]:
    """Name and shape of every parameter of a predictor; they do not depend on the number of heads."""
    with torch.device("meta"):
        made = Predictor(size.width, predictor.width, predictor.depth, predictor.heads or 1, 1, outputs=predictor.outputs)
        return {name: p.shape for name, p in made.named_parameters()}


def check_parameters(tensors: Mapping[str, Tensor], shapes: dict[str, torch.Size], tables: set[str], where: str) -> None:
    """Check that tensors are exactly these parameters (and position tables).

    Raises:
        WeightsError: lists all missing and unexpected tensors and wrong shapes.
    """
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    for name in tensors:
        if name in shapes and tensors[name].shape != shapes[name]:
            problems.append(f"{name} is {list(tensors[name].shape)}, expected {list(shapes[name])}")
        elif name in shapes and not tensors[name].is_floating_point():
            problems.append(f"{name} is {tensors[name].dtype}, expected floating-point numbers")
        elif name not in shapes and name not in tables and name not in IGNORED:
            problems.append(f"{name} is not part of an I-JEPA network{_hint(name)}")
    if problems:
        more = f" ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise WeightsError(f"{where}: " + "; ".join(problems[:_SHOWN]) + more + family(tensors))


def _hint(name: str) -> str:
    for part, words in (
        ("cls_token", " (a class token: another kind of ViT)"),
        ("reg_token", " (registers: another kind of ViT)"),
        ("fc_norm", " (a norm after pooling: another kind of ViT)"),
    ):
        if part in name:
            return words
    return ""


def infer_grids(table: Tensor, where: str) -> tuple[int, int]:
    """Infer the grid of a position table `[1, G*G, D]`, and the grid it had in training.

    Raises:
        WeightsError: these are not fixed sine-cosine positions of a square grid.
    """
    n, width = table.shape[-2:]
    grid = math.isqrt(n)
    if table.shape[:-2].numel() != 1 or grid * grid != n or width % 4:
        raise WeightsError(f"{where}: positions {list(table.shape)} are not those of a square grid")
    tolerance = 1e-4 if table.dtype == torch.float32 else 1e-2  # half precision rounds values up to 1
    flat = table.float().reshape(1, n, width)
    best, at = math.inf, grid
    for learnt in (grid, *(g for g in range(1, 4 * grid + 1) if g != grid)):
        error = float((sincos_position_embedding(width, grid, learnt) - flat).abs().max())
        if error < best:
            best, at = error, learnt
        if learnt == grid and error < tolerance:
            break
    if not best < tolerance:
        raise WeightsError(
            f"{where}: the positions are not I-JEPA's fixed sine-cosine (nearest differs by {best:.2g}): another kind of ViT?"
        )
    return grid, at
