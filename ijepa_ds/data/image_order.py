"""Which image every sample shows, before replacements, and the identity of that plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from ijepa_ds.config import DataConfig
from ijepa_ds.counter import ORDER_VERSION
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.order import mix_places, mixed_indices, sample_indices
from ijepa_ds.data.shard_order import ShardOrder, shards_of

UNKNOWN = "unknown"


class ImageOrder:
    """The images of the samples: a function of `run.seed` and the global sample number, with `data.order`."""

    def __init__(self, cfg: DataConfig, index: ImageIndex, seed: int) -> None:
        """Read the sizes of the shards, if `data.order` needs them."""
        self._index, self._seed = index, seed
        self._counts = [part.count for part in index.parts]
        self._weights = [part.weight for part in index.parts if part.weight is not None]
        self._shards = _in_shards(cfg, index, self._counts if self._weights else [len(index)])

    def indices(self, numbers: np.ndarray) -> np.ndarray:
        """Map global sample numbers to images, before replacements; int64 [n] to int64 [n]."""
        if self._weights:
            return mixed_indices(numbers, self._counts, self._weights, self._seed, self._draw)
        return self._draw(numbers, 0, self._seed)

    def _draw(self, numbers: np.ndarray, source: int, seed: int) -> np.ndarray:
        """Positions in a source of a mix with weights, or in the whole index."""
        if self._shards:
            return self._shards[source].indices(numbers, seed)
        return sample_indices(numbers, self._counts[source] if self._weights else len(self._index), seed)


def _in_shards(cfg: DataConfig, index: ImageIndex, counts: list[int]) -> list[ShardOrder]:
    """The order within each source; none if the order is global. Shards end where a source ends."""
    if cfg.order == "global":
        return []
    sizes = shards_of(index, cfg.shuffle_window)
    ends = np.searchsorted(np.cumsum(sizes), np.cumsum(counts)) + 1
    return [ShardOrder(sizes[a:b], cfg.shuffle_window) for a, b in pairwise([0, *ends.tolist()])]


def mix_of(index: ImageIndex) -> list[list[int]] | None:
    """Return what the weights of a mix decide: images and positions in a block of `MIX_BLOCK` samples of every source.

    None without weights.
    """
    weights = [part.weight for part in index.parts if part.weight is not None]
    if not weights:
        return None
    return [[part.count, int(places)] for part, places in zip(index.parts, mix_places(weights), strict=True)]


def plan_identity(cfg: DataConfig, index: ImageIndex) -> dict[str, Any]:
    """Everything besides the configuration that decides which image a sample shows, as JSON values.

    Two runs with one seed and equal identities see the same images at the same steps.
    """
    identity = {"version": ORDER_VERSION, "images": len(index), "checksum": index.checksum, "mix": mix_of(index)}
    if cfg.order == "global":
        return identity | {"order": "global"}
    sizes = shards_of(index, cfg.shuffle_window)
    digest = hashlib.blake2b(sizes.astype("<i8").tobytes(), digest_size=16).hexdigest()
    return identity | {"order": {"window": cfg.shuffle_window, "shards": len(sizes), "sizes": digest}}


def identity_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The identity in a checkpoint's manifest; those of before it was one value have it in several, or not at all."""
    return manifest.get("plan") or {
        "version": manifest.get("order_version", 1),
        "images": manifest.get("images"),
        "checksum": manifest.get("data_checksum"),
        "mix": manifest.get("mix") if "mix" in manifest else UNKNOWN,
        "order": "global",
    }
