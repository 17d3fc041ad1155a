"""Resizes weights to another image or patch size, or another number of channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from timm.layers import resample_patch_embed
from torch import Tensor

from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.lazy import LazyTensors
from ijepa_ds.weights.source import Source

_PATCHES = "patch_embed.proj.weight"


def resized(source: Source, image_size: int | None = None, patch_size: int | None = None) -> Source:
    """A source for another image or patch size; its notes list the changes.

    Sine-cosine positions are evaluated between the trained ones: a place in the image keeps its position. The patch
    embedding is resampled with the pseudo-inverse of patch resizing (FlexiViT, Beyer et al., CVPR 2023).

    Args:
        source: not modified.
        image_size: pixels; None: unchanged.
        patch_size: pixels; None: unchanged.

    Raises:
        WeightsError: the image is not a whole number of patches.
    """
    image_size, patch_size = image_size or source.grid * source.patch_size, patch_size or source.patch_size
    if image_size < patch_size or image_size % patch_size:
        raise WeightsError(f"{source.path}: images of {image_size} pixels are not a whole number of patches of {patch_size}")
    grid, parts, notes = image_size // patch_size, dict(source.parts), list(source.notes)
    if patch_size != source.patch_size:
        notes.append(f"patch embedding resampled from {source.patch_size} to {patch_size} pixels a patch")
        for label, tensors in source.parts.items():
            if label != "predictor":
                parts[label] = _with(tensors, _PATCHES, resample_patch_embed(tensors[_PATCHES].float(), [patch_size] * 2))
    if grid != source.grid:
        before, learnt = source.grid, source.position_grid
        where = f"between the learnt {learnt} x {learnt}" if learnt != grid else f"at 0 ... {grid - 1}, as in a fresh start"
        notes.append(f"{grid} x {grid} patches instead of {before} x {before}: sine-cosine positions evaluated {where}")
    return replace(source, parts=parts, patch_size=patch_size, grid=grid, notes=tuple(notes))


def with_channels(source: Source, channels: int, how: str) -> Source:
    """A source for images of other channels; its notes say how the patch embedding was filled.

    The response to an image whose channels are all equal stays the same if the source's channels are.

    Args:
        source: not modified.
        channels: C.
        how: `average`: each channel gets the average of the kernels; `repeat`: the kernels in turn (R, G, B, R, ...). Both
            are scaled by the source's channels / C.
    """
    there = source.size.channels
    if channels == there:
        return source
    parts, scale = dict(source.parts), there / channels
    for label, tensors in source.parts.items():
        if label == "predictor":
            continue
        kernels = tensors[_PATCHES].float()  # [D, there, P, P]
        if how == "average":
            filled = kernels.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1) * scale
        else:
            filled = kernels[:, [channel % there for channel in range(channels)]] * scale
        parts[label] = _with(tensors, _PATCHES, filled.contiguous())
    what = f"the average of its {there} kernels" if how == "average" else f"its {there} kernels in turn"
    note = f"patch embedding of {channels} channels instead of {there}: {what}, times {there}/{channels} (model.init_channels)"
    return replace(source, parts=parts, size=replace(source.size, channels=channels), notes=(*source.notes, note))


def _with(tensors: Mapping[str, Tensor], name: str, value: Tensor) -> LazyTensors:
    readers = {other: partial(tensors.__getitem__, other) for other in tensors}
    return LazyTensors(readers | {name: lambda: value})
