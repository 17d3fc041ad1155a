"""Maps parameter names between ours (the same as timm's and the published checkpoints') and Hugging Face's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ijepa_ds.weights.lazy import LazyTensors

# One block: ours -> the names in files of transformers (all versions write and read these).
_BLOCK = {
    "norm1": ("layernorm_before",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "norm2": ("layernorm_after",),
    "mlp.fc1": ("intermediate.dense",),
    "mlp.fc2": ("output.dense",),
}
_OUTSIDE = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
# Module names of transformers 5 -> names in its files.
_MODULES = (
    (re.compile(r"^layers\.(\d+)\.attention\.([qkv])_proj\."), r"encoder.layer.\1.attention.attention.\2."),
    (re.compile(r"^layers\.(\d+)\.attention\.o_proj\."), r"encoder.layer.\1.attention.output.dense."),
    (re.compile(r"^layers\.(\d+)\.mlp\.fc1\."), r"encoder.layer.\1.intermediate.dense."),
    (re.compile(r"^layers\.(\d+)\.mlp\.fc2\."), r"encoder.layer.\1.output.dense."),
    (re.compile(r"^layers\.(\d+)\."), r"encoder.layer.\1."),
)
_LETTERS = {"q": "query", "k": "key", "v": "value"}


def hugging_face_names(name: str) -> tuple[str, ...]:
    """Names in transformers of one of our encoder's parameters: three for qkv (stacked in this order), else one."""
    if name == "pos_embed":
        return ("embeddings.position_embeddings",)
    stem, _, kind = name.rpartition(".")
    if stem in _OUTSIDE:
        return (f"{_OUTSIDE[stem]}.{kind}",)
    _, index, inner = stem.split(".", 2)
    return tuple(f"encoder.layer.{index}.{theirs}.{kind}" for theirs in _BLOCK[inner])


def file_name(key: str) -> str:
    """Map a key of a transformers state dict to its name in files."""
    key = key.removeprefix("ijepa.")
    for pattern, replacement in _MODULES:
        key, changed = pattern.subn(replacement, key)
        if changed:
            break
    return re.sub(r"(\.attention\.attention\.)([qkv])\.", lambda m: f"{m[1]}{_LETTERS[m[2]]}.", key)


def from_hugging_face(theirs: Mapping[str, Tensor]) -> tuple[LazyTensors, list[str]]:
    """A transformers encoder under our names, and the keys that have no counterpart here."""
    keys = {file_name(key): key for key in theirs}
    depth = len({key.split(".")[2] for key in keys if key.startswith("encoder.layer.")})
    stems = [*_OUTSIDE, *(f"blocks.{i}.{part}" for i in range(depth) for part in _BLOCK)]
    readers: dict[str, Callable[[], Tensor]] = {}
    used: set[str] = set()
    for name in ["pos_embed", *(f"{stem}.{kind}" for stem in stems for kind in ("weight", "bias"))]:
        names = hugging_face_names(name)
        if all(key in keys for key in names):
            readers[name] = partial(_joined, theirs, [keys[key] for key in names])
            used.update(names)
    return LazyTensors(readers), sorted(keys.keys() - used)


def _joined(tensors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return tensors[names[0]] if len(names) == 1 else torch.cat([tensors[name] for name in names])
