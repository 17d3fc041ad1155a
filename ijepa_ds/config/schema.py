"""The schema of a run: frozen, keyword-only dataclasses. One YAML file maps onto `Config`, nothing else is.

What lives where: this YAML owns the task (model, data, masks, optimisation, precision); the DeepSpeed JSON
owns how it is spread over devices (ZeRO stage, offload, buckets). Each refuses what belongs to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from ijepa_ds.masks.settings import MasksConfig


class ConfigError(ValueError):
    """A configuration that cannot be run; the text has one line a problem: place, key, what to change."""

    def __init__(self, problems: Sequence[str]) -> None:
        """`problems`: the lines."""
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run lives and how often it tells about itself."""

    dir: str
    seed: int = 0
    resume: str = "auto"  # auto: newest checkpoint in dir, else a fresh start; never: fresh start; or a checkpoint
    branch_from: str | None = None  # a checkpoint that the run begins with while its own folder has none
    log_every: int = 10  # steps between TensorBoard points
    probe_every: int = 100  # steps between collapse probes (feature std, effective rank)
    picture_every: int = 1000  # steps between mask pictures; 0 = never
    checkpoint_every: int = 1000  # steps; the last step is always saved
    keep_last: int = 2  # newest checkpoints kept
    keep_every: int = 0  # checkpoints of steps that this divides are kept for good; 0 = none
    hang_timeout: float = 900.0  # seconds without progress after which the job is ended; 0 = never
    max_nonfinite: int = 3  # steps in a row with a non-finite loss or gradient (each is skipped) that stop the run


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and how they become crops; all chance is a function of (run.seed, global sample number)."""

    source: str  # folder of images or of tar shards, list, tar(s), index, mix: docs/data.md
    crop_size: int = 224
    early_crop_size: int | None = None  # crops are shrunk to this side in the first early_steps: fewer patches
    early_steps: int = 0
    crop_scale: tuple[float, float] = (0.3, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: bool = False
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # brightness, contrast, saturation, hue
    color_jitter_probability: float = 0.8
    grayscale: float = 0.0  # probability
    blur: float = 0.0  # probability
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    loader: str = "auto"  # auto | dali | torchvision
    decoder: str = "auto"  # auto | cpu | mixed (JPEG decoding on the GPU) | mixed_roi (of the window only)
    threads: int = 1  # decoding threads a rank
    prefetch: int = 2  # batches decoded ahead
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in 0..1
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_pixels: int = 100_000_000  # larger images (by their header) are refused
    max_bad: int = 100  # stop at more unreadable images than this
    max_bad_share: float = 0.25  # stop where they are more than this share of all


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """The narrow predictor."""

    depth: int = 12
    width: int = 384
    heads: int | None = None  # None: as many as the encoder


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder: a row of `config_sizes.SIZES` by name, single numbers overridden where given."""

    name: str  # tiny | small | base | large | huge | giant | ...
    patch_size: int = 16
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp_hidden: int | None = None
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    precision: str = "bfloat16"  # bfloat16 | float32; master weights, EMA, LayerNorm, loss: always float32
    target_precision: str = "same"  # same | bfloat16: of the target encoder's matrix products; its weights stay as they are
    activation_checkpointing: bool = False
    recompute: str = "full"  # with it: full | selective
    compile: bool = False  # blocks through torch.compile: on GPUs, ZeRO stages 0 to 2
    # Options beyond the published models; the predictor is plain whatever they are. None: as the named size has it.
    qkv_bias: bool | None = None
    qk_norm: bool | None = None
    parallel: bool | None = None
    swiglu: bool = False
    rope: bool = False
    registers: int = 0
    layer_scale: float = 0.0  # start value; 0 = no LayerScale
    drop_path: float = 0.0  # at the last block, linear from 0
    init_from: str | None = None  # weights that a fresh start begins with: a run, an export, published, timm, Hugging Face
    position_grid: int | None = None  # patches along a side where positions were learnt; None: as many as this run has


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """AdamW and its schedules, in global batches."""

    batch_size: int  # GLOBAL batch: images per optimiser step over all ranks
    max_micro_batch: int = 128  # images per device and pass at most; accumulation follows
    epochs: float | None = None  # exactly one of epochs, steps
    steps: int | None = None
    warmup_epochs: float | None = None  # exactly one of warmup_epochs, warmup_steps
    warmup_steps: int | None = None
    schedule: str = "cosine"  # cosine | wsd: warm-up, constant, linear cool-down; weight decay and EMA are constant
    cooldown_steps: int = 0  # wsd: the last steps of the run
    lr: float = 1e-3
    start_lr: float = 2e-4
    final_lr: float = 1e-6
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    ema: tuple[float, float] = (0.996, 1.0)
    ipe_scale: float = 1.0  # schedules are stretched by this; the run still ends after epochs (or steps)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float = 0.0  # global gradient norm; 0 = no clipping


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """k-NN and RankMe of the live target while training."""

    every: int = 0  # steps, a multiple of run.checkpoint_every; 0 = never
    train: str | None = None  # labelled images that vote
    test: str | None = None  # labelled images that are scored
    k: int = 20  # neighbours
    max_train: int = 10000  # images used at most
    max_test: int = 2000


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    masks: MasksConfig = field(default_factory=MasksConfig)
    optimization: OptimizationConfig
    eval: EvalConfig = field(default_factory=EvalConfig)

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.data.crop_size // self.model.patch_size


def flatten(section: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a configuration (or a section of one) under its dotted key, in the schema's order."""
    flat: dict[str, Any] = {}
    for item in fields(section):
        key, value = prefix + item.name, getattr(section, item.name)
        flat |= flatten(value, key + ".") if is_dataclass(value) else {key: value}
    return flat
