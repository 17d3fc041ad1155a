"""Checks of a whole configuration: fields (`build`), then contradictions between keys."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

from ijepa_ds.config import stages
from ijepa_ds.config.batch import BatchPlan, plan_of
from ijepa_ds.config.build import build, suggest
from ijepa_ds.config.objective_checks import objective_problems
from ijepa_ds.config.schema import Config, ConfigError, DataConfig, Problem
from ijepa_ds.config.sizes import size_of

_CROPS = 8  # possible crops on each side of a wrong one, among which one with large contexts is looked for


def check(cfg: Config, world_size: int) -> BatchPlan:
    """Check everything once more when the number of devices is known.

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
    """Everything that keeps `cfg` from running, on `world_size` devices if given; empty if it can run."""
    return examine(asdict(cfg), world_size)[1]


def examine(values: Mapping[str, Any], world_size: int | None = None) -> tuple[Config, list[Problem]]:
    """Fill the schema and check it: `build.build`, and contradictions between keys that have no problem themselves."""
    cfg, found = build(values)
    wrong = [problem.keys[0] for problem in found]
    for problem in _contradictions(cfg, world_size):
        if not any(_overlap(key, bad) for key in problem.keys for bad in wrong):
            found.append(problem)
    return cfg, found


def _overlap(key: str, other: str) -> bool:
    """Whether one of two dotted keys is the other, or the section around it."""
    return key == other or key.startswith(other + ".") or other.startswith(key + ".")


def _contradictions(cfg: Config, world_size: int | None) -> Iterator[Problem]:
    yield from _run(cfg)
    yield from _lengths(cfg)
    yield from _channels(cfg)
    yield from stages.schedule_problems(cfg)
    yield from _networks(cfg)
    yield from objective_problems(cfg, world_size)
    if world_size is not None:
        try:
            plan_of(cfg, world_size)
        except ConfigError as error:
            yield Problem(("optimization.batch_size",), error.problems[0].partition(": ")[2])
    crop, patch = cfg.data.crop_size, cfg.model.patch_size
    if crop % patch:
        use = " or ".join(map(str, _possible_crops(cfg)))
        text = f"{crop} is not a multiple of model.patch_size {patch}; use {use or 'one, or another patch size'}"
        yield Problem(("data.crop_size", "model.patch_size"), text)
        return
    yield from _masks(cfg)
    yield from stages.resolution_problems(cfg, lambda early: [f"{p.keys[0]} {p.text}" for p in _masks(early)])


def _possible_crops(cfg: Config) -> list[int]:
    """The nearest multiples of the patch size below and above that the masks can be drawn on, with contexts large enough.

    Where no contexts are large enough, by other settings, the nearest that are possible.
    """
    crop, patch = cfg.data.crop_size, cfg.model.patch_size
    below, healthy, possible = crop - crop % patch, list[int](), list[int]()
    for sizes in (range(below, 0, -patch), range(below + patch, 3 * below + 16 * patch, patch)):
        drawn = (size for size in sizes if not list(_masks(replace(cfg, data=replace(cfg.data, crop_size=size)))))
        found = list(islice(drawn, _CROPS))
        possible += found[:1]
        healthy += next(([size] for size in found if not _thin(cfg, size // patch)), [])
    return healthy or possible


def _run(cfg: Config) -> Iterator[Problem]:
    """Evaluations, and what the run starts from."""
    if cfg.eval.every:
        for key, folder in (("eval.train", cfg.eval.train), ("eval.test", cfg.eval.test)):
            if not (folder or "").strip():
                yield Problem((key, "eval.every"), "eval.every is set: name labelled images, one folder per class")
        if cfg.eval.labels is not None and cfg.eval.task == "knn":
            yield Problem(("eval.labels", "eval.task"), "eval.task is knn, which has no folder of labels; remove one")
        if cfg.eval.every % cfg.run.checkpoint_every:
            text = f"must be a multiple of run.checkpoint_every ({cfg.run.checkpoint_every}), so that the best can be kept"
            yield Problem(("eval.every", "run.checkpoint_every"), f"{text}, got {cfg.eval.every}")
    if cfg.data.loader == "torchvision" and cfg.data.decoder not in ("auto", "cpu"):
        text = f"{cfg.data.decoder} needs DALI, but data.loader is torchvision; set it to dali, or the decoder to cpu"
        yield Problem(("data.decoder", "data.loader"), text)
    resume = cfg.run.resume
    if cfg.run.branch_from is not None and resume != "auto":
        text = f"needs run.resume: auto (the run resumes from its own checkpoints once it has some), got {resume}"
        yield Problem(("run.branch_from", "run.resume"), text)
    if resume not in ("auto", "never") and os.sep not in resume and not os.path.exists(resume):
        guess = suggest(resume, ("auto", "never"))
        yield Problem(("run.resume",), f"'{resume}' is neither auto, never nor an existing checkpoint{guess}")


def _lengths(cfg: Config) -> Iterator[Problem]:
    """The length of the run and of its warm-up."""
    o = cfg.optimization
    for first, second in (("epochs", "steps"), ("warmup_epochs", "warmup_steps")):
        a, b = getattr(o, first), getattr(o, second)
        keys = (f"optimization.{first}", f"optimization.{second}")
        if a is None and b is None:
            yield Problem(keys, f"missing; give exactly one of {first} and {second}")
        elif a is not None and b is not None:
            yield Problem(
                keys[::-1], f"both {first} ({a:g}) and {second} ({b}) are given; set one of them to null or remove it"
            )
    # Epochs and steps can only be compared when the images are counted: `schedules.Schedule.of` does that.
    for warmup, total in (("warmup_epochs", "epochs"), ("warmup_steps", "steps")):
        a, b = getattr(o, warmup), getattr(o, total)
        if a is not None and b is not None and a > b * o.ipe_scale:
            text = f"{a:g} is longer than the schedules ({total} {b:g} times ipe_scale {o.ipe_scale:g}); shorten it"
            yield Problem((f"optimization.{warmup}", f"optimization.{total}", "optimization.ipe_scale"), text)


def _channels(cfg: Config) -> Iterator[Problem]:
    """Lists with one value for each channel, and options that only RGB images of 8 bits have."""
    data, count = cfg.data, cfg.model.channels
    where = "model.channels"
    for name in ("mean", "std"):
        if len(getattr(data, name)) != count:
            text = f"has {len(getattr(data, name))} values, but {where} is {count}: give one for each (ijepa-ds data stats)"
            yield Problem((f"data.{name}", where), text)
    if data.channels is not None and len(data.channels) != count:
        yield Problem(("data.channels", where), f"names {len(data.channels)} channels, but {where} is {count}")
    for name in ("scale", "offset"):
        given = getattr(data, name)
        if given is not None and len(given) not in (1, count):
            yield Problem(
                (f"data.{name}", where), f"has {len(given)} values: give one for all, or {count}, one for each channel"
            )
    if data.shown is not None and (len(data.shown) not in (1, 3) or max(data.shown) >= count):
        yield Problem(("data.shown", where), f"expected one or three channels from 0 to {count - 1}, got {list(data.shown)}")
    if data.scale is None:
        keys = [name for name in ("offset", "outside", "nodata") if getattr(data, name) != getattr(DataConfig, name)]
        yield from (Problem((f"data.{name}", "data.scale"), "needs data.scale") for name in keys)
    elif len(data.scale) in (1, count) and len(data.offset) in (1, count):
        pairs = zip(data.offset * (count // len(data.offset)), data.scale * (count // len(data.scale)), strict=True)
        if any(low >= high for low, high in pairs):
            yield Problem(("data.scale", "data.offset"), "must be above data.offset in every channel")
    plain = count == 3 and data.channels is None and data.scale is None
    if not plain and data.loader == "dali":
        text = "DALI reads RGB of 8 bits only; with model.channels, data.channels or data.scale leave it at auto"
        yield Problem(("data.loader", "data.channels", "data.scale", where), text)
    if not plain and data.decoder not in ("auto", "cpu"):
        text = f"{data.decoder} reads RGB of 8 bits only; leave it at auto"
        yield Problem(("data.decoder", "data.channels", "data.scale", where), text)
    for name in ("color_jitter", "grayscale"):
        if count != 3 and getattr(data, name) not in (0.0, (0.0,) * 4):
            yield Problem((f"data.{name}", where), f"is for images of 3 channels, {where} is {count}")


def _networks(cfg: Config) -> Iterator[Problem]:
    """Widths against heads and position embeddings (after the named size is filled in), and options that exclude each other."""
    model, predictor, size = cfg.model, cfg.model.predictor, size_of(cfg.model)
    encoder = ("model.name", "model.width", "model.heads")
    of_predictor = ("model.predictor.width", "model.predictor.heads" if predictor.heads else "model.heads", "model.name")
    for width, heads, first, keys, hint in (
        (size.width, size.heads, "model.width" if model.width else "model.heads", encoder, ""),
        (
            predictor.width,
            predictor.heads or size.heads,
            "model.predictor.width",
            of_predictor,
            "" if predictor.heads else ", or set model.predictor.heads",
        ),
    ):
        # a multiple of it has whole heads, and channels for the positions
        step = 4 * heads if size.rope and keys is encoder else math.lcm(4, heads)
        low = width // step * step
        use = f"{low} or {low + step}" if low else f"{step}"
        if width % heads:
            yield Problem((first, *keys), f"width {width} is not a multiple of {heads} heads; use width {use}{hint}")
        if width % 4:
            text = f"width {width} is not a multiple of 4, which the sine-cosine positions need; use {use}"
            yield Problem((keys[-2] if first == "model.heads" else first, *keys), text)
    if size.rope and size.width // size.heads % 4:
        text = f"a head has {size.width // size.heads} channels, rotary positions need a multiple of 4; change model.heads"
        yield Problem(("model.rope", *encoder), text)
    for key in ("rope", "swiglu"):
        if size.parallel and getattr(size, key):
            yield Problem((f"model.{key}", "model.parallel", "model.name"), "does not go with parallel blocks; use one of them")
    if model.compile and model.activation_checkpointing and model.recompute == "selective":
        text = "selective does not go with model.compile, which leaves no single products to keep: use full"
        yield Problem(("model.recompute", "model.compile", "model.activation_checkpointing"), text)
    if model.residual == "bfloat16" and model.precision != "bfloat16":
        text = f"bfloat16 needs model.precision: bfloat16 (it is {model.precision}); set that, or leave model.residual out"
        yield Problem(("model.residual", "model.precision"), text)


def _thin(cfg: Config, grid: int) -> bool:
    """Whether contexts on a grid would be too small to teach much."""
    from ijepa_ds.masks import sampler, thin  # late: it imports PyTorch

    planner = sampler.build_sampler(cfg.masks, grid, 0, cfg.masks.truncation_group).planner
    return thin.warning(planner, grid) != ""


def _masks(cfg: Config) -> Iterator[Problem]:
    from ijepa_ds.masks import sampler  # late: it imports PyTorch

    for text in sampler.check(cfg.masks, cfg.grid):
        named = re.match(r"(masks\.\w+) ", text)
        key = named[1] if named else "masks"
        yield Problem((key, "masks", "data.crop_size", "model.patch_size"), text.removeprefix(key + " "))
