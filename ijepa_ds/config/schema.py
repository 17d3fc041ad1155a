"""Every key of a run's YAML, with its type, range, default and meaning; one file maps onto one `Config`.

The YAML owns the task (model, data, masks, optimization, precision); the DeepSpeed JSON owns how it is distributed
over devices (ZeRO stage, offload, buckets). Each refuses the keys of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

from pydantic import ConfigDict

from ijepa_ds.config.objective import ObjectiveConfig, TargetsConfig
from ijepa_ds.config.sizes import ModelConfig
from ijepa_ds.errors import UserError
from ijepa_ds.field_types import (
    Area,
    Count,
    Deviation,
    Flag,
    Hue,
    Level,
    Limit,
    NotNegative,
    Number,
    OneOrSeveral,
    Ordered,
    Path,
    Positive,
    Probability,
    Seed,
    Several,
    Share,
    Sigma,
    Text,
    Whole,
    key,
)
from ijepa_ds.masks.settings import MasksConfig


class ConfigError(UserError):
    """A configuration that cannot be run; `problems` has one line for each problem: place, key, what to change."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Problem:
    """What is wrong, and what to do (`text`); `keys` are the dotted keys involved, the first is the one to report."""

    keys: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        """The line to print."""
        return f"{self.keys[0]}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where the run is stored, and how often it reports and saves."""

    dir: Path = key(..., "folder of this run", free=True)
    seed: Seed = key(0, "everything random follows from it")
    resume: Text = key(
        "auto", "`auto`: the newest checkpoint in `run.dir`, else a fresh start; `never`; or a checkpoint", free=True
    )
    branch_from: Path | None = key(None, "a checkpoint to begin with while `run.dir` has none", free=True)
    log_every: Count = key(10, "steps between TensorBoard points", free=True)
    probe_every: Count = key(100, "steps between collapse probes (feature deviation, effective rank)", free=True)
    picture_every: Whole = key(1000, "steps between pictures of masks; 0: never", free=True)
    checkpoint_every: Count = key(1000, "steps between checkpoints; the last step is always saved", free=True)
    keep_last: Count = key(2, "newest checkpoints kept", free=True)
    keep_every: Whole = key(0, "checkpoints whose step is a multiple of this are kept for good; 0: none", free=True)
    start_timeout: Positive = key(180.0, "seconds for which the ranks wait for each other at the start", free=True)
    hang_timeout: NotNegative = key(900.0, "seconds without progress that end the job, naming the rank; 0: never", free=True)
    max_nonfinite: Count = key(3, "consecutive steps with a non-finite loss or gradient that stop the run", free=True)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and how they become crops; all chance is a function of (`run.seed`, global sample number)."""

    source: Path = key(..., "folder of images, list, tar shards, parquet, index or mix: `docs/data.md`", free=True)
    crop_size: Count = key(224, "side of a crop in pixels, a multiple of `model.patch_size`")
    early_crop_size: Count | None = key(None, "smaller crops in the first `data.early_steps`; `null`: none", later=True)
    early_steps: Whole = key(0, "optimizer steps with smaller crops", later=True)
    crop_scale: Ordered[Area] = key((0.3, 1.0), "area of a crop, as a share of the image")
    crop_ratio: Ordered[Positive] = key((3 / 4, 4 / 3), "width / height of a crop before it is resized to a square")
    horizontal_flip: Flag = key(False, "mirror half of the crops")
    color_jitter: tuple[NotNegative, NotNegative, NotNegative, Hue] = key(
        (0.0, 0.0, 0.0, 0.0), "strengths of brightness, contrast, saturation and hue, as torchvision's ColorJitter", later=True
    )
    color_jitter_probability: Probability = key(0.8, "share of the crops that are jittered", later=True)
    grayscale: Probability = key(0.0, "share of the crops converted to gray", later=True)
    blur: Probability = key(0.0, "share of the crops blurred by a Gaussian", later=True)
    blur_sigma: Ordered[Sigma] = key((0.1, 2.0), "its standard deviation in pixels, uniform", later=True)
    loader: Literal["auto", "dali", "torchvision"] = key("auto", "what reads and crops the images", free=True)
    decoder: Literal["auto", "cpu", "mixed", "mixed_roi"] = key(
        "auto",
        "`mixed`: JPEGs on the GPU, by DALI; `mixed_roi`: only their windows; `auto`: `mixed` if there is a GPU",
        free=True,
    )
    order: Literal["global", "shards"] = key(
        "global", "`global`: any image follows any other; `shards`: for storage that is slow at random reads", later=True
    )
    shuffle_window: Count = key(
        16384, "images that are shuffled among each other, of shards in random order", later=True, only_with="data.order=shards"
    )
    threads: Count = key(1, "decoding threads per rank", free=True)
    readers: Count = key(32, "files read at once per rank, ahead of decoding; they mostly wait for the storage", free=True)
    prefetch: Count = key(2, "batches decoded ahead", free=True)
    mean: Several[Share] = key((0.485, 0.456, 0.406), "mean of every channel (red, green, blue); pixels are in 0 to 1")
    std: Several[Deviation] = key((0.229, 0.224, 0.225), "their standard deviations")
    channels: Several[Whole] | None = key(
        None, "channels of the files that are used, in this order, the first is 0; `null`: all", later=True
    )
    scale: OneOrSeveral | None = key(
        None, "value that becomes 1, one for all channels or one for each; `null`: 255, of 8-bit files only", later=True
    )
    offset: OneOrSeveral = key((0.0,), "value that becomes 0, likewise", later=True)
    outside: Literal["refuse", "clip"] = key(
        "refuse", "images with values outside `data.offset` to `data.scale`: unreadable, or clipped", later=True
    )
    nodata: Number | None = key(
        None, "value that stands for no data, as NaN does; filled with `data.mean`; `null`: what a TIFF says", later=True
    )
    arrays: Literal["hwc", "chw"] | None = key(
        None, "how .npy and .npz files store [H, W, C] or [C, H, W]; `null`: they are no images", later=True
    )
    shown: Several[Whole] | None = key(
        None,
        "channels of the network that pictures show: three, or one as gray; `null`: the first three, or the first",
        free=True,
    )
    max_pixels: Count = key(100_000_000, "images with more pixels, by their header, are refused", free=True)
    class_level: Level | None = key(
        None, "folders that make the class: the first n, or the last n for -n; `null`: the whole path", free=True
    )
    image_column: Text = key("", "column of a parquet file's images; empty: found by its type and metadata", free=True)
    label_column: Text = key("", "column of its classes, integers or text; empty: found by its metadata or name", free=True)
    parquet_cache: Count = key(1024, "MiB of a parquet file's row groups that a rank keeps in memory", free=True)
    tar_end: Literal["error", "warn"] = key(
        "error", "a tar without its two last blocks of zeros: `error` refuses it, `warn` reads the members it has", free=True
    )
    max_bad: Limit = key(
        100, "the run stops when more images (below 1: a larger share) turn out unreadable than at the scan", free=True
    )
    max_bad_share: Share = key(0.25, "and when all unreadable ones are more than this share of all images", free=True)
    storage_timeout: NotNegative = key(
        600.0, "seconds for which reads are repeated while the storage fails; then the run stops with exit code 75", free=True
    )


@dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """AdamW and its schedules, in global batches."""

    batch_size: Count = key(..., "images of one optimizer step over ALL devices")
    max_micro_batch: Count = key(128, "most images per device and pass; gradients are accumulated", free=True)
    epochs: Positive | None = key(None, "length of the run; exactly one of `epochs` and `steps`")
    steps: Count | None = key(None, "length of the run in optimizer steps")
    warmup_epochs: NotNegative | None = key(None, "linear warm-up; exactly one of `warmup_epochs` and `warmup_steps`")
    warmup_steps: Whole | None = key(None, "linear warm-up in optimizer steps")
    schedule: Literal["cosine", "wsd"] = key("cosine", "`wsd`: warm-up, constant, cool-down", later=True)
    cooldown_steps: Whole = key(0, "`wsd`: the last steps, in which the learning rate falls linearly to `final_lr`", later=True)
    lr: Positive = key(1e-3, "learning rate after the warm-up")
    start_lr: NotNegative = key(2e-4, "learning rate at the start of the warm-up")
    final_lr: NotNegative = key(1e-6, "learning rate at the end of its cosine, or of the cool-down")
    weight_decay: NotNegative = key(0.04, "at the start; biases and 1-D parameters have none")
    final_weight_decay: NotNegative = key(0.4, "at the end of its cosine")
    ema: Ordered[Probability] = key((0.996, 1.0), "momentum of the target encoder at the start and at the end, linear between")
    ipe_scale: Positive = key(1.0, "stretches the schedules, not the run")
    betas: tuple[Share, Share] = key((0.9, 0.999), "of AdamW")
    eps: Positive = key(1e-8, "of AdamW")
    clip_grad: NotNegative = key(0.0, "limit of the global gradient norm; 0: none")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Scores of the live target encoder while training (`docs/evaluate.md`)."""

    every: Whole = key(0, "steps between evaluations, a multiple of `run.checkpoint_every`, and the end; 0: never", free=True)
    task: Literal["knn", "segment", "depth"] = key(
        "knn", "`knn`: k-NN and RankMe of pooled features; else the scores of that task on patch tokens", free=True
    )
    train: Text | None = key(
        None, "labelled images that vote: one folder per class, or a source with classes; else `images` and labels", free=True
    )
    test: Text | None = key(None, "labelled images that are scored", free=True)
    labels: Text | None = key(
        None, "`segment`, `depth`: folder of labels beside `images`; null: `masks`, or `depth`", free=True
    )
    k: Count = key(20, "neighbours of `knn`", free=True)
    max_train: Count = key(10000, "images of `eval.train` used at most, the same each time", free=True)
    max_test: Count = key(2000, "images of `eval.test` used at most", free=True)


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    __pydantic_config__ = ConfigDict(extra="forbid", title="ijepa_ds run")

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    masks: MasksConfig = field(default_factory=MasksConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
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
        name, value = prefix + item.name, getattr(section, item.name)
        flat |= flatten(value, name + ".") if is_dataclass(value) else {name: value}
    return flat
