"""The encoder's shapes by name, and the `model` section, which names one. No PyTorch: planning and checking need none."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Literal

from ijepa_ds.field_types import Automatic, Count, Flag, NotNegative, Path, Share, Whole, key


@dataclass(frozen=True)
class Size:
    """One encoder shape; `ModelConfig` describes the fields. The published models use none of those from `qkv_bias` on."""

    width: int
    depth: int
    heads: int
    mlp_hidden: int
    qkv_bias: bool = True
    qk_norm: bool = False  # Dehghani et al., arXiv 2302.05442
    parallel: bool = False  # the same
    swiglu: bool = False  # Shazeer, arXiv 2002.05202
    gate: str = "silu"  # of swiglu
    rope: bool = False
    registers: int = 0  # Darcet et al., arXiv 2309.16588
    layer_scale: float = 0.0  # Touvron et al., arXiv 2103.17239
    drop_path: float = 0.0  # Huang et al., arXiv 1603.09382
    channels: int = 3  # of the images

    @property
    def options(self) -> list[str]:
        """Names of the options that differ from the published models."""
        return [f.name for f in fields(self) if f.default is not MISSING and getattr(self, f.name) != f.default]

    @property
    def only_ours(self) -> list[str]:
        """Options that neither timm's nor transformers' models have."""
        return [name for name in self.options if name not in ("channels", "drop_path")]  # drop_path acts in training only


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
if TYPE_CHECKING:
    SizeName = str
else:
    SizeName = Literal[tuple(SIZES)]


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """The narrow predictor."""

    depth: Count = key(12, "blocks of the predictor")
    width: Count = key(384, "width of the predictor")
    heads: Count | None = key(None, "attention heads of the predictor; `null`: as many as the encoder")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The networks: an encoder size by name, with single numbers overridden, and options beyond the published models."""

    name: SizeName = key(..., "size of the encoder")
    patch_size: Count = key(16, "side of a patch in pixels")
    channels: Count = key(3, "channels of the images: `docs/data.md`", later=True)
    width: Count | None = key(None, "`null`: as the named size")
    depth: Count | None = key(None, "blocks; `null`: as the named size")
    heads: Count | None = key(None, "attention heads; `null`: as the named size")
    mlp_hidden: Count | None = key(None, "hidden width of a block's MLP; `null`: as the named size")
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    precision: Literal["auto", "bfloat16", "float32"] = key(
        "bfloat16",
        "of matrix products (`auto`: the faster one, measured at a fresh start); master weights, EMA, LayerNorm, softmax and "
        "loss are always float32",
    )
    target_precision: Literal["same", "bfloat16"] = key(
        "same",
        "`bfloat16`: the target encoder's matrix products where `precision` is `float32`; its weights stay float32",
        later=True,
    )
    residual: Literal["float32", "bfloat16"] = key(
        "float32",
        "type of the values between blocks; `bfloat16` moves fewer bytes where `precision` is `bfloat16` "
        "(`docs/performance.md`)",
        later=True,
    )
    activation_checkpointing: Flag = key(
        False, "recompute activations per block: less memory, about a third more time", free=True
    )
    recompute: Literal["full", "selective"] = key(
        "full",
        "with it: `full` keeps only a block's input, `selective` also the results of its matrix products",
        free=True,
        only_with="model.activation_checkpointing=true",
    )
    compile: Automatic[Flag] = key(
        None,
        "blocks through `torch.compile`; `null` or `auto`: on a GPU where a compiler works (`docs/performance.md`)",
        free=True,
    )
    qkv_bias: Flag | None = key(None, "biases of queries, keys and values; `null`: as the named size", later=True)
    qk_norm: Flag | None = key(None, "LayerNorm of every head's queries and keys; needed from about 8 B parameters", later=True)
    parallel: Flag | None = key(None, "attention and MLP of a block in parallel; not with `swiglu` or `rope`", later=True)
    swiglu: Flag = key(False, "gated MLP; 1.5 times the MLP's parameters at the same `mlp_hidden`", later=True)
    gate: Literal["silu", "gelu"] = key(
        "silu",
        "activation of the gate; `gelu`: as runs with `swiglu` of before December 2026 have it",
        later=True,
        only_with="model.swiglu=true",
    )
    rope: Flag = key(False, "rotary positions in the encoder, no sine-cosine table; not in the predictor", later=True)
    registers: Whole = key(0, "learnt tokens beside the patches, left out of the result", later=True)
    layer_scale: NotNegative = key(0.0, "start value of LayerScale on every residual branch; 0: none", later=True)
    drop_path: Share = key(0.0, "drop probability of the context encoder's last block, linear from 0 at the first", later=True)
    init_from: Path | None = key(
        None, "weights for a fresh start (`docs/weights.md`); not read when the run resumes", later=True
    )
    init_channels: Literal["average", "repeat"] | None = key(
        None, "how `init_from` an encoder of other channels fills the patch embedding; `null`: it is refused", later=True
    )
    position_grid: Count | None = key(
        None, "grid on which positions were learnt; `null`: as this run or `init_from`", later=True
    )


def size_of(cfg: ModelConfig) -> Size:
    """The row of `SIZES` that `cfg.name` names, with what `cfg` overrides.

    Without an explicit `mlp_hidden`, an overridden width keeps the row's ratio of hidden to width.
    """
    row = SIZES[cfg.name]
    given = {name: value for name in (f.name for f in fields(Size)) if (value := getattr(cfg, name)) is not None}
    return replace(row, **{"mlp_hidden": round(row.mlp_hidden * given.get("width", row.width) / row.width), **given})
