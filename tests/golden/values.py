"""Computes the values frozen in tests/golden/*.txt: five cases of everything that is drawn or scheduled.

A line of a file is `case: values`. Integers are compared exactly, floats within the tolerance of their subject.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ijepa_ds.config import DataConfig, MasksConfig
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.counter import ORDER_VERSION
from ijepa_ds.data.augment import network_input
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.order import mixed_indices, sample_indices, stand_ins
from ijepa_ds.data.shard_order import ShardOrder
from ijepa_ds.evals.lowshot import draw_per_class
from ijepa_ds.evals.shared import held_out
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.model.blocks import Size, draw_drops, make_blocks
from ijepa_ds.model.vit import initial_value
from ijepa_ds.training.eval_images import Labelled
from ijepa_ds.training.eval_images import some as some_of

FOLDER = Path(__file__).parent
HEADER = f"order version {ORDER_VERSION}"
_LARGE = 10_000_000_019  # a global sample number that needs more than 32 bits

Lines = dict[str, str]  # case -> values


@dataclass(frozen=True)
class Subject:
    """One file: how its lines are computed, and by how much its floats may differ (integers: not at all)."""

    lines: Callable[[], Lines]
    relative: float = 0.0
    absolute: float = 0.0


def _integers(values: object) -> str:
    return " ".join(str(value) for value in np.asarray(values).astype(np.int64).flatten().tolist())


def _floats(values: object) -> str:
    return " ".join(repr(float(value)) for value in np.asarray(values).flatten().tolist())


def _order() -> Lines:
    found = {}
    for seed, images, first in ((0, 5, 3), (3, 1281, 1275), (17, 1_281_167, 600 * 1_281_167 - 4), (2**40 + 7, 16, 8)):
        numbers = np.arange(first, first + 12)
        found[f"seed {seed}, {images} images, samples from {first}"] = _integers(sample_indices(numbers, images, seed))
    found["seed 0, 3000000000 images, single samples"] = _integers(sample_indices(np.array([0, 77, _LARGE]), 3 * 10**9, 0))
    return found


def _stand_ins() -> Lines:
    return {
        f"seed {seed}, {images} images, sample {number}": _integers(stand_ins(number, images, seed)[:12])
        for seed, images, number in ((0, 5, 3), (3, 1281, 1275), (17, 1_281_167, 600), (2**40 + 7, 16, 8), (1, 10**9, _LARGE))
    }


def _mixed_order() -> Lines:
    found = {}
    for seed, counts, weights, first in (
        (0, (10, 20), (0.5, 0.5), 0),
        (3, (100, 7, 50), (0.7, 0.2, 0.1), 995),
        (17, (1_000_000, 30), (99.0, 1.0), 5_000_000),
        (2**40 + 7, (4, 4, 4, 4), (1.0, 2.0, 3.0, 4.0), 12),
        (1, (9, 5), (1.0, 999.0), _LARGE),
    ):
        drawn = mixed_indices(np.arange(first, first + 12), counts, weights, seed)
        found[f"seed {seed}, {counts} images, weights {weights}, samples from {first}"] = _integers(drawn)
    return found


def _shard_order() -> Lines:
    found = {}
    for seed, sizes, window, first in (
        (0, (4, 1, 7), 3, 6),
        (3, (100, 7, 50, 1000), 64, 2300),
        (17, (4700,) * 272, 16384, 600 * 4700 * 272 - 4),
        (2**40 + 7, (5,) * 7, 1000, 12),
        (1, (1, 2, 3, 4, 5, 6), 1, _LARGE),
    ):
        drawn = ShardOrder(np.array(sizes), window).indices(np.arange(first, first + 12), seed)
        shards = f"{len(sizes)} shards of {sizes[0]} to {sizes[-1]}"
        found[f"seed {seed}, {shards}, window {window}, samples from {first}"] = _integers(drawn)
    return found


def _crops() -> Lines:
    found = {}
    for name, seed, first, sizes, scale, ratio in (
        ("wide", 0, 0, ((640, 400), (333, 77)), (0.3, 1.0), (3 / 4, 4 / 3)),
        ("tall", 3, 995, ((300, 500), (77, 333)), (0.3, 1.0), (3 / 4, 4 / 3)),
        ("asymmetric ratio", 17, 5_000_000, ((640, 400), (300, 500)), (0.08, 0.7), (0.5, 1.2)),
        ("centred", 0, 12, ((3000, 300), (300, 3000)), (0.9, 1.0), (0.5, 1.2)),
        ("large numbers", 2**40 + 7, _LARGE, ((48, 64), (4000, 6000)), (0.2, 0.9), (0.5, 1.2)),
    ):
        widths, heights = np.array([sizes[i % 2] for i in range(6)]).T
        drawn = crop_windows(widths, heights, np.arange(first, first + 6), seed, scale, ratio)
        found[f"{name}, seed {seed}, samples from {first}: top left height width"] = _integers(drawn)
    return found


def _flips() -> Lines:
    cases = ((0, 0), (3, 995), (17, 5_000_000), (2**40 + 7, 12), (1, _LARGE))
    return {f"seed {seed}, samples from {first}": _integers(flips(np.arange(first, first + 40), seed)) for seed, first in cases}


def _masks(*cases: tuple[str, MasksConfig, int, int, int, int]) -> Lines:
    found = {}
    for name, cfg, grid, seed, step, first in cases:
        masks = build_sampler(cfg, grid, seed, batch_size=40).sample(step, first, 2, "cpu")
        case = f"{name}, seed {seed}, step {step}, positions from {first}"
        found[f"{case}, first and last patches of targets"] = _integers(masks.targets[..., [0, -1]])
        found[f"{case}, contexts {list(masks.context.shape)}"] = _integers(masks.context)
    return found


def _published_masks() -> Lines:
    two = MasksConfig(num_contexts=2, num_targets=3, context_scale=(0.4, 0.6), truncation_group=8)
    crowded = MasksConfig(min_keep=11, target_scale=(0.25, 0.3), context_scale=(0.4, 0.5), num_targets=3, truncation_group=32)
    return _masks(
        ("grid 8", MasksConfig(min_keep=4, truncation_group=8), 8, 0, 0, 0),
        ("two contexts", two, 12, 3, 995, 8),
        ("overlap", MasksConfig(min_keep=3, allow_overlap=True, truncation_group=8), 7, 17, 5_000_000, 38),
        ("redraws", crowded, 8, 1, 5, 4),
        ("group beyond the batch", MasksConfig(min_keep=4, truncation_group=16), 8, 2**40 + 7, 12, 34),
    )


def _unbiased_masks() -> Lines:
    def settings(**changes: object) -> MasksConfig:
        return MasksConfig(sampler="unbiased", **changes)  # type: ignore[arg-type]

    return _masks(
        ("grid 8", settings(), 8, 0, 0, 0),
        ("two contexts", settings(num_contexts=2, num_targets=3, context_scale=(0.4, 0.6)), 8, 3, 995, 8),
        ("overlap", settings(allow_overlap=True), 7, 17, 5_000_000, 38),
        ("redraws", settings(context_tokens=24), 8, 1, 5, 4),
        ("many targets", settings(num_targets=6, target_scale=(0.1, 0.3)), 8, 2**40 + 7, 12, 33),
    )


def _augmentations() -> Lines:
    everything = DataConfig(source="", crop_size=8, color_jitter=(0.4, 0.3, 0.2, 0.1), grayscale=0.2, blur=0.5)
    places = np.indices((2, 8, 8, 3)).transpose(1, 2, 3, 4, 0)
    pixels = torch.from_numpy(((places @ [101, 37, 53, 85] + places[..., 1] * places[..., 2] * 11) % 256).astype(np.uint8))
    found = {}
    for seed, first in ((0, 0), (3, 995), (17, 5_000_000), (2**40 + 7, 12), (1, _LARGE)):
        result = network_input(pixels, first, everything, seed, torch.float32)
        found[f"seed {seed}, samples {first} and {first + 1}"] = _floats(result[:, :, (0, 3, 7), (1, 4, 6)])
    return found


def _schedules() -> Lines:
    def schedule(total: int, warmup: int, horizon: int, cooldown: int | None, ema: float, decay: float = 0.4) -> Schedule:
        return Schedule(total, warmup, horizon, 2e-4, 1e-3, 1e-6, 0.04, decay, ema=(ema, 1.0), cooldown=cooldown)

    cases = {
        "cosine": schedule(50, 10, 50, None, 0.996),
        "cosine, horizon beyond the end": schedule(42, 14, 52, None, 0.996),
        "cosine, no warm-up, falling decay": schedule(300_000, 0, 375_000, None, 0.99, decay=0.01),
        "wsd": schedule(50, 10, 50, 40, 0.996),
        "wsd, long": schedule(300_000, 15_000, 300_000, 240_000, 0.9985),
    }
    found = {}
    for name, values in cases.items():
        steps = (0, values.warmup_steps - 1, values.warmup_steps, values.total_steps // 2, values.total_steps - 5)
        for step in sorted({max(0, step) for step in steps}):
            found[f"{name}, step {step}: lr, weight decay, momentum"] = _floats(values.at(step))
    return found


def _start_values() -> Lines:
    found = {}
    for name, shape, seed in (
        ("encoder.patch_embed.proj.weight", (16, 3, 4, 4), 0),
        ("encoder.blocks.1.attn.qkv.weight", (48, 16), 3),
        ("predictor.mask_token", (1, 1, 24), 17),
        ("encoder.registers", (1, 4, 16), 2**31),
        ("predictor.predictor_blocks.0.mlp.fc2.weight", (8, 32), 1),
        ("encoder.blocks.0.attn.qkv.bias", (12,), 1),
        ("encoder.norm.weight", (12,), 1),
        ("encoder.blocks.0.ls1.gamma", (12,), 1),
    ):
        value = initial_value(name, torch.Size(shape), seed, layer_scale=1e-5).flatten()
        found[f"{name} {list(shape)}, seed {seed}"] = _floats(torch.cat([value[:3], value[len(value) // 2 :][:3], value[-2:]]))
    return found


def _drop_path() -> Lines:
    blocks, found = make_blocks(Size(16, 4, 2, 64, drop_path=0.5)), {}
    for first in range(5):
        draw_drops(blocks, (torch.arange(12)[:, None] * 3 + torch.arange(10) * (first + 1)) % 64)
        kept = torch.stack([block.drop_path1.keep.flatten() for block in blocks[1:]])  # type: ignore[union-attr]
        kept = torch.cat([kept, torch.stack([block.drop_path2.keep.flatten() for block in blocks[1:]])])  # type: ignore[union-attr]
        found[f"patches every {first + 1}: sequences kept, by branch"] = _integers(kept > 0)
    return found


def _evaluation_splits() -> Lines:
    labels = torch.arange(60) ** 2 % 7
    some = Labelled([str(i) for i in range(60)], labels)
    return {
        "2 of each class, seed 0": _integers(draw_per_class(labels, 2, 0)),
        "3 of each class, seed 17": _integers(draw_per_class(labels, 3, 17)),
        "held out of 40, seed 0": _integers(held_out(40, 0).nonzero()),
        "held out of 40, seed 3": _integers(held_out(40, 3).nonzero()),
        "12 of 60 in the run's own evaluation": " ".join(some_of(some, 12).paths),
    }


SUBJECTS = {
    "order": Subject(_order),
    "stand_ins": Subject(_stand_ins),
    "mixed_order": Subject(_mixed_order),
    "shard_order": Subject(_shard_order),
    "crops": Subject(_crops),
    "flips": Subject(_flips),
    "masks_published": Subject(_published_masks),
    "masks_unbiased": Subject(_unbiased_masks),
    # float32 sums and exponentials differ by up to 1e-5 between processors
    "augmentations": Subject(_augmentations, absolute=1e-4),
    "schedules": Subject(_schedules, relative=1e-12),  # a cosine may differ in its last bits
    "start_values": Subject(_start_values, absolute=1e-8),  # of values around 0.02
    "drop_path": Subject(_drop_path),
    "evaluation_splits": Subject(_evaluation_splits),
}


def path_of(subject: str, folder: Path = FOLDER) -> Path:
    """The file of a subject."""
    return folder / f"{subject}.txt"


def read(path: Path) -> tuple[str, Lines]:
    """Header and lines of a file."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return header, dict(line.rsplit(": ", 1) for line in lines)


def differences(subject: str, frozen: Lines, now: Lines) -> list[str]:
    """What differs beyond the subject's tolerance, one text each."""
    allowed, found = SUBJECTS[subject], []
    for case in [*frozen, *(case for case in now if case not in frozen)]:
        old, new = frozen.get(case, "").split(), now.get(case, "").split()
        if len(old) != len(new) or not all(_equal(a, b, allowed) for a, b in zip(old, new, strict=True)):
            found.append(f"{subject}, {case}: {' '.join(old) or 'nothing'} is frozen, {' '.join(new) or 'nothing'} is computed")
    return found


def _equal(old: str, new: str, allowed: Subject) -> bool:
    if old == new:
        return True
    if not (allowed.relative or allowed.absolute):
        return False
    return abs(float(old) - float(new)) <= allowed.absolute + allowed.relative * abs(float(old))
