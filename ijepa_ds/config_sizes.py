"""The encoder shapes by name. Apart from the networks, so that planning and checking a run need no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ijepa_ds.config_schema import ModelConfig


@dataclass(frozen=True)
class Size:
    """One encoder shape."""

    width: int
    depth: int
    heads: int
    mlp_hidden: int


SIZES = {
    "tiny": Size(192, 12, 3, 768),
    "small": Size(384, 12, 6, 1536),
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "huge": Size(1280, 32, 16, 5120),
    "giant": Size(1408, 40, 16, 6144),
    "gigantic": Size(1664, 48, 16, 8192),
    "enormous": Size(1792, 56, 16, 15360),
}


def size_of(cfg: ModelConfig) -> Size:
    """The row of `SIZES` that `cfg.name` names, with the numbers `cfg` overrides.

    Without an explicit `mlp_hidden`, an overridden width keeps the row's ratio of hidden to width.
    """
    row = SIZES[cfg.name]
    width = cfg.width or row.width
    return Size(
        width=width,
        depth=cfg.depth or row.depth,
        heads=cfg.heads or row.heads,
        mlp_hidden=cfg.mlp_hidden or round(row.mlp_hidden * width / row.width),
    )
