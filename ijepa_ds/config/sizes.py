"""The encoder shapes by name. Apart from the networks, so that planning and checking a run need no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from ijepa_ds.config.schema import ModelConfig


@dataclass(frozen=True)
class Size:
    """One encoder shape. From `qkv_bias` on: options that the published models do without.

    Attributes:
        width: D.
        depth: blocks.
        heads: attention heads.
        mlp_hidden: hidden width of a block's MLP.
        qkv_bias: biases of queries, keys and values.
        qk_norm: LayerNorm of every head's queries and keys (Dehghani et al., arXiv 2302.05442).
        parallel: attention and MLP of a block side by side, from one normalised input (the same).
        swiglu: gated MLP, SiLU (Shazeer, arXiv 2002.05202); half as many parameters more at the same `mlp_hidden`.
        rope: rotary positions inside attention instead of the sine-cosine table at the input.
        registers: learnt tokens beside the patches, left out of the result (Darcet et al., arXiv 2309.16588).
        layer_scale: start value of a learnt factor on every residual branch (Touvron et al., arXiv 2103.17239); 0: none.
        drop_path: probability with which the context encoder leaves out a branch of its last block, linear from 0 at the first
            (Huang et al., arXiv 1603.09382).
    """

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    qkv_bias: bool = True
    qk_norm: bool = False
    parallel: bool = False
    swiglu: bool = False
    rope: bool = False
    registers: int = 0
    layer_scale: float = 0.0
    drop_path: float = 0.0

    @property
    def options(self) -> list[str]:
        """Names of the options that make this another network than the published ones."""
        return [f.name for f in fields(self) if f.default is not MISSING and getattr(self, f.name) != f.default]


SIZES = {
    "tiny": Size(192, 12, 3, 768),
    "small": Size(384, 12, 6, 1536),
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "huge": Size(1280, 32, 16, 5120),
    "giant": Size(1408, 40, 16, 6144),
    "gigantic": Size(1664, 48, 16, 8192),
    "enormous": Size(1792, 56, 16, 15360),
    "7b": Size(4096, 40, 32, 16384),
    "22b": Size(6144, 48, 48, 24576, qkv_bias=False, qk_norm=True, parallel=True),
}


def size_of(cfg: ModelConfig) -> Size:
    """The row of `SIZES` that `cfg.name` names, with what `cfg` overrides.

    Without an explicit `mlp_hidden`, an overridden width keeps the row's ratio of hidden to width.
    """
    row = SIZES[cfg.name]
    width = cfg.width or row.width
    return Size(
        width=width,
        depth=cfg.depth or row.depth,
        heads=cfg.heads or row.heads,
        mlp_hidden=cfg.mlp_hidden or round(row.mlp_hidden * width / row.width),
        qkv_bias=row.qkv_bias if cfg.qkv_bias is None else cfg.qkv_bias,
        qk_norm=row.qk_norm if cfg.qk_norm is None else cfg.qk_norm,
        parallel=row.parallel if cfg.parallel is None else cfg.parallel,
        swiglu=cfg.swiglu,
        rope=cfg.rope,
        registers=cfg.registers,
        layer_scale=cfg.layer_scale,
        drop_path=cfg.drop_path,
    )
