"""What a well-typed configuration may still get wrong: impossible values and contradictions between keys."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from ijepa_ds.config import stages
from ijepa_ds.config.batch import BatchPlan, plan_of
from ijepa_ds.config.build import suggest
from ijepa_ds.config.schema import Config, ConfigError, flatten
from ijepa_ds.config.sizes import SIZES, size_of
from ijepa_ds.config.stages import Problem

_AT_LEAST: dict[str, float] = {
    "run.seed": 0,
    "run.log_every": 1,
    "run.probe_every": 1,
    "run.picture_every": 0,
    "run.checkpoint_every": 1,
    "run.keep_last": 1,
    "run.keep_every": 0,
    "run.hang_timeout": 0,
    "run.max_nonfinite": 1,
    "data.crop_size": 1,
    "data.early_crop_size": 1,
    "data.early_steps": 0,
    "data.threads": 1,
    "data.prefetch": 1,
    "data.max_pixels": 1,
    "data.max_bad": 0,
    "model.patch_size": 1,
    "model.width": 1,
    "model.depth": 1,
    "model.heads": 1,
    "model.mlp_hidden": 1,
    "model.registers": 0,
    "model.layer_scale": 0,
    "model.position_grid": 1,
    "model.predictor.depth": 1,
    "model.predictor.width": 1,
    "model.predictor.heads": 1,
    "masks.num_contexts": 1,
    "masks.num_targets": 1,
    "masks.min_keep": 0,
    "masks.truncation_group": 1,
    "masks.context_tokens": 1,
    "optimization.batch_size": 1,
    "optimization.max_micro_batch": 1,
    "optimization.steps": 1,
    "optimization.warmup_epochs": 0,
    "optimization.warmup_steps": 0,
    "optimization.cooldown_steps": 0,
    "optimization.start_lr": 0,
    "optimization.final_lr": 0,
    "optimization.weight_decay": 0,
    "optimization.final_weight_decay": 0,
    "optimization.clip_grad": 0,
    "eval.every": 0,
    "eval.k": 1,
    "eval.max_train": 1,
    "eval.max_test": 1,
}
_ABOVE_ZERO = (
    "data.std",
    "optimization.epochs",
    "optimization.lr",
    "optimization.ipe_scale",
    "optimization.eps",
)
_INSIDE = {
    "data.max_bad_share": (0.0, 1.0),
    "data.mean": (0.0, 1.0),
    "model.drop_path": (0.0, 1.0),
    "optimization.betas": (0.0, 1.0),
}
_PROBABILITIES = ("data.color_jitter_probability", "data.grayscale", "data.blur")
_CHOICES = {
    "data.decoder": ("auto", "cpu", "mixed", "mixed_roi"),
    "data.loader": ("auto", "dali", "torchvision"),
    "model.precision": ("bfloat16", "float32"),
    "model.recompute": ("full", "selective"),
    "model.target_precision": ("same", "bfloat16"),
    "masks.sampler": ("published", "unbiased"),
    "optimization.schedule": ("cosine", "wsd"),
}
# Ordered pairs: (lower bound, whether it is allowed itself, upper bound).
_PAIRS: dict[str, tuple[float, bool, float]] = {
    "data.crop_scale": (0, False, 1),
    "data.crop_ratio": (0, False, float("inf")),
    "data.blur_sigma": (0, False, 20),
    "masks.context_scale": (0, False, 1),
    "masks.target_scale": (0, False, 1),
    "masks.target_aspect": (0, False, float("inf")),
    "optimization.ema": (0, True, 1),
}


def check(cfg: Config, world_size: int) -> BatchPlan:
    """Check everything once more, now that the number of devices is known.

    Returns:
        How the batch is cut.

    Raises:
        ConfigError: one line for each problem.
    """
    found = problems(cfg, world_size)
    if found:
        raise ConfigError([str(problem) for problem in found])
    return plan_of(cfg, world_size)


def problems(cfg: Config, world_size: int | None = None) -> list[Problem]:
    """Everything that keeps `cfg` from running, on `world_size` devices if given; empty when all is well."""
    found = [*_single(cfg), *_pairs(cfg), *_lengths(cfg), *stages.schedule_problems(cfg)]
    wrong = {key for problem in found for key in problem.keys}
    if not wrong & {"data.crop_size", "model.patch_size"}:
        found += _grid(cfg)
    if not any(key.startswith("model.") for key in wrong):
        found += _heads(cfg)
    if not wrong & {"optimization.batch_size", "optimization.max_micro_batch", "masks.truncation_group"}:
        found += _batch(cfg, world_size)
    if cfg.model.compile and cfg.model.activation_checkpointing and cfg.model.recompute == "selective":
        text = "selective does not go with model.compile, which leaves no single products to keep: take full"
        found.append(Problem(("model.recompute",), text))
    of_masks = ("masks", "data.crop_size", "model.patch_size")
    if not any(problem.keys[0].startswith(of_masks) for problem in found):
        found += _masks(cfg)
        found += stages.resolution_problems(cfg, lambda early: [f"{w.keys[0]} {w.text}" for w in _masks(early)])
    return found


def _single(cfg: Config) -> Iterator[Problem]:
    """Keys that are wrong whatever the others say."""
    flat = flatten(cfg)
    for key, least in _AT_LEAST.items():
        if flat[key] is not None and flat[key] < least:
            yield Problem((key,), f"must be at least {least}, got {flat[key]}")
    for key in _ABOVE_ZERO:
        if any(part <= 0 for part in _parts(flat[key])):
            yield Problem((key,), f"must be above 0, got {_shown(flat[key])}")
    for key, (low, high) in _INSIDE.items():
        if any(not low <= part < high for part in _parts(flat[key])):
            yield Problem((key,), f"must be at least {low:g} and below {high:g}, got {_shown(flat[key])}")
    for key in _PROBABILITIES:
        if not 0 <= flat[key] <= 1:
            yield Problem((key,), f"is a probability, from 0 to 1, got {flat[key]}")
    jitter = cfg.data.color_jitter
    if min(jitter) < 0 or jitter[3] > 0.5:
        text = f"strengths are at least 0, that of the hue (the last) at most 0.5, got {_shown(jitter)}"
        yield Problem(("data.color_jitter",), text)
    for key, known in {**_CHOICES, "model.name": tuple(SIZES)}.items():
        if flat[key] not in known:
            text = f"'{flat[key]}' is not known{suggest(flat[key], known)} (one of: {', '.join(known)})"
            yield Problem((key,), text)
    for key in ("run.dir", "data.source"):
        if not flat[key].strip():
            yield Problem((key,), "is empty; name a folder")
    if cfg.model.init_from is not None and not cfg.model.init_from.strip():
        yield Problem(("model.init_from",), "is empty; name weights, or null for a fresh start")
    if cfg.eval.every:
        for key in ("eval.train", "eval.test"):
            if not (flat[key] or "").strip():
                yield Problem((key,), "eval.every is set: name labelled images, one folder a class")
        if cfg.eval.every % max(1, cfg.run.checkpoint_every):
            text = f"must be a multiple of run.checkpoint_every ({cfg.run.checkpoint_every}), so that the best can be kept"
            yield Problem(("eval.every", "run.checkpoint_every"), f"{text}, got {cfg.eval.every}")
    if cfg.run.branch_from is not None and not cfg.run.branch_from.strip():
        yield Problem(("run.branch_from",), "is empty; name a checkpoint, or null")
    if cfg.run.branch_from is not None and cfg.run.resume != "auto":
        text = f"needs run.resume: auto (the run goes on from its own checkpoints once it has some), got {cfg.run.resume}"
        yield Problem(("run.branch_from", "run.resume"), text)
    resume = cfg.run.resume
    if resume not in ("auto", "never") and os.sep not in resume and not os.path.exists(resume):
        guess = suggest(resume, ("auto", "never"))
        yield Problem(("run.resume",), f"'{resume}' is neither auto, never nor an existing checkpoint{guess}")


def _parts(value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    return value if isinstance(value, tuple) else (value,)


def _shown(value: Any) -> str:
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def _pairs(cfg: Config) -> Iterator[Problem]:
    flat = flatten(cfg)
    for key, (low, inclusive, high) in _PAIRS.items():
        first, last = flat[key]
        above = first >= low if inclusive else first > low
        if not (above and first <= last <= high):
            bounds = f"{low:g} {'<=' if inclusive else '<'} a <= b"
            bounds += f" <= {high:g}" if high < float("inf") else ""
            yield Problem((key,), f"must be a pair [a, b] with {bounds}, got {_shown(flat[key])}")


def _lengths(cfg: Config) -> Iterator[Problem]:
    """How long the run and its warm-up are."""
    o = cfg.optimization
    for first, second in (("epochs", "steps"), ("warmup_epochs", "warmup_steps")):
        a, b = getattr(o, first), getattr(o, second)
        keys = (f"optimization.{first}", f"optimization.{second}")
        if a is None and b is None:
            yield Problem(keys, f"missing; give exactly one of {first} and {second}")
        elif a is not None and b is not None:
            text = f"both {first} ({a:g}) and {second} ({b}) are given; set one of them to null or remove it"
            yield Problem(keys[::-1], text)
    # Epochs against steps can only be compared once the images are counted: schedules.Schedule.of does that.
    for warmup, total in (("warmup_epochs", "epochs"), ("warmup_steps", "steps")):
        a, b = getattr(o, warmup), getattr(o, total)
        if a is not None and b is not None and a > b * o.ipe_scale > 0:
            whole = f"{total} {b:g} times ipe_scale {o.ipe_scale:g}"
            text = f"{a:g} is longer than the schedules ({whole}); shorten it"
            yield Problem((f"optimization.{warmup}", f"optimization.{total}", "optimization.ipe_scale"), text)


def _grid(cfg: Config) -> Iterator[Problem]:
    crop, patch = cfg.data.crop_size, cfg.model.patch_size
    if crop % patch:
        sizes = " or ".join(str(size) for size in (crop - crop % patch, crop - crop % patch + patch) if size)
        text = f"{crop} is not a multiple of model.patch_size {patch}; use {sizes}"
        yield Problem(("data.crop_size", "model.patch_size"), text)


def _heads(cfg: Config) -> Iterator[Problem]:
    """Widths against heads and the position embedding, after the named size is filled in."""
    size, predictor = size_of(cfg.model), cfg.model.predictor
    encoder = ("model.name", "model.width", "model.heads")
    ours = "model.predictor.heads" if predictor.heads else "model.heads"
    for width, heads, keys in (
        (size.width, size.heads, ("model.width" if cfg.model.width else "model.heads", *encoder)),
        (predictor.width, predictor.heads or size.heads, ("model.predictor.width", ours, "model.name")),
    ):
        name = "model.predictor" if "predictor" in keys[0] else "model"
        if width % heads:
            near = sorted({max(1, width // heads) * heads, (width // heads + 1) * heads})
            text = f"width {width} is not a multiple of {heads} heads; use width {near[0]} or {near[-1]}"
            inherited = name == "model.predictor" and not predictor.heads
            yield Problem(keys, text + (", or set model.predictor.heads" if inherited else ""))
        if width % 4:
            near4 = f"{width - width % 4 or 4} or {width - width % 4 + 4}"
            text = f"width {width} is not a multiple of 4, which the sine-cosine positions need; use {near4}"
            yield Problem((f"{name}.width", *keys), text)
    if size.rope and size.width // size.heads % 4:
        text = f"a head has {size.width // size.heads} channels, rotary positions need a multiple of 4; change model.heads"
        yield Problem(("model.rope", *encoder), text)
    for key in ("rope", "swiglu"):
        if size.parallel and getattr(size, key):
            yield Problem((f"model.{key}", "model.parallel", "model.name"), "does not go with parallel blocks; use one of them")


def _batch(cfg: Config, world_size: int | None) -> Iterator[Problem]:
    if world_size is None:
        return
    try:
        plan_of(cfg, world_size)
    except ConfigError as error:
        for line in error.problems:
            key, _, text = line.partition(": ")
            yield Problem((key,), text)


def _masks(cfg: Config) -> Iterator[Problem]:
    from ijepa_ds.masks import sampler  # late: masks imports the schema through this package's `config`

    for text in sampler.check(cfg.masks, cfg.grid):
        named = re.match(r"(masks\.\w+) ", text)
        key = named[1] if named else "masks"
        yield Problem((key, "masks", "data.crop_size", "model.patch_size"), text.removeprefix(key + " "))
