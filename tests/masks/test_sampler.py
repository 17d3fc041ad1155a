"""Properties every mask sampler has."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode

from ijepa_ds.config import MasksConfig
from ijepa_ds.masks.sampler import SAMPLERS, Masks, build_sampler, check, take

_BATCH = 48
_SETTINGS = {  # name: grid, settings
    "grid 16": (16, MasksConfig(truncation_group=24)),
    "grid 8": (8, MasksConfig(min_keep=4, truncation_group=24)),
    "grid 14, two contexts": (
        14,
        MasksConfig(num_contexts=2, num_targets=3, context_scale=(0.4, 0.6), truncation_group=24),
    ),
    "grid 7, overlap": (7, MasksConfig(min_keep=3, allow_overlap=True, truncation_group=24)),
}


def test_every_sampler_is_a_choice_of_the_configuration() -> None:
    assert get_args(get_type_hints(MasksConfig)["sampler"]) == tuple(SAMPLERS)


@pytest.fixture(params=list(SAMPLERS))
def sampler_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=list(_SETTINGS))
def setting(request: pytest.FixtureRequest, sampler_name: str) -> tuple[int, MasksConfig]:
    grid, cfg = _SETTINGS[request.param]
    return grid, replace(cfg, sampler=sampler_name)


def _same(a: Masks, b: Masks) -> bool:
    return torch.equal(a.context, b.context) and torch.equal(a.targets, b.targets)


def test_lists_are_ascending_inside_the_grid_and_targets_are_rectangles(
    setting: tuple[int, MasksConfig],
) -> None:
    grid, cfg = setting
    sampler = build_sampler(cfg, grid, seed=1, batch_size=_BATCH)
    for step in range(12):
        masks = sampler.sample(step, 24, 24, "cpu")
        assert masks.context.shape[:2] == (24, cfg.num_contexts)
        assert masks.targets.shape[:2] == (24, cfg.num_targets)
        for lists in (masks.context, masks.targets):
            assert lists.dtype == torch.int64 and lists.is_contiguous()
            assert lists.min() >= 0 and lists.max() < grid * grid
            assert (lists.diff() > 0).all()
        row, column = masks.targets // grid, masks.targets % grid
        height, width = (x.amax(-1) - x.amin(-1) + 1 for x in (row, column))
        assert (height * width == masks.targets.shape[-1]).all()
        assert height.unique().numel() == 1


def test_contexts_share_no_patch_with_the_targets_unless_allowed(setting: tuple[int, MasksConfig]) -> None:
    grid, cfg = setting
    sampler = build_sampler(cfg, grid, seed=2, batch_size=_BATCH)
    shared = 0
    for step in range(12):
        masks = sampler.sample(step, 0, 24, "cpu")
        context, targets = masks.context.flatten(1), masks.targets.flatten(1)
        shared += int((context[:, :, None] == targets[:, None, :]).sum())
    assert (shared > 0) == cfg.allow_overlap


@pytest.mark.parametrize("micro_batch", [1, 3, 8, 12, 24])
def test_micro_batches_are_slices_of_the_global_batch(setting: tuple[int, MasksConfig], micro_batch: int) -> None:
    grid, cfg = setting
    cfg = replace(cfg, truncation_group=_BATCH)
    whole = build_sampler(cfg, grid, seed=3, batch_size=_BATCH).sample(5, 0, _BATCH, "cpu")
    sampler = build_sampler(cfg, grid, seed=3, batch_size=_BATCH)
    for first in reversed(range(0, _BATCH, micro_batch)):  # in any order, by any process
        part = sampler.sample(5, first, micro_batch, "cpu")
        rows = slice(first, first + micro_batch)
        assert _same(part, Masks(whole.context[rows], whole.targets[rows]))


def test_draws_depend_on_seed_and_step_and_on_nothing_drawn_before(setting: tuple[int, MasksConfig]) -> None:
    grid, cfg = setting
    sampler = build_sampler(cfg, grid, seed=4, batch_size=_BATCH)
    draws = [sampler.sample(step, 0, 24, "cpu") for step in range(4)]
    fresh = build_sampler(cfg, grid, seed=4, batch_size=_BATCH)
    assert all(_same(fresh.sample(step, 0, 24, "cpu"), draws[step]) for step in (3, 0, 2, 0))
    assert not any(_same(draws[a], draws[b]) for a in range(4) for b in range(a))
    assert not _same(build_sampler(cfg, grid, seed=5, batch_size=_BATCH).sample(0, 0, 24, "cpu"), draws[0])
    assert not _same(sampler.sample(0, 24, 24, "cpu"), draws[0])


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.14") and not torch.cuda.is_available(),
    reason="OLD PYTORCH: it asks a driver, which is not there, for the fake device",
)
def test_drawing_for_a_cuda_device_never_asks_it_for_a_value(setting: tuple[int, MasksConfig]) -> None:
    # A fake tensor has a shape and no value: .item(), nonzero or a mixture of devices raise.
    grid, cfg = setting
    sampler = build_sampler(cfg, grid, seed=6, batch_size=_BATCH)
    real = sampler.sample(7, 0, 24, "cpu")
    with FakeTensorMode():
        fake = sampler.sample(7, 0, 24, "cuda")
    assert fake.context.device.type == "cuda" and fake.targets.device.type == "cuda"
    assert fake.context.shape == real.context.shape and fake.targets.shape == real.targets.shape
    assert fake.context.dtype == fake.targets.dtype == torch.int64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_draws_equal_cpu_draws_without_waiting(setting: tuple[int, MasksConfig]) -> None:
    grid, cfg = setting
    sampler = build_sampler(cfg, grid, seed=6, batch_size=_BATCH)
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [sampler.sample(step, 0, 24, "cuda") for step in range(8)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, masks in enumerate(drawn):
        assert _same(Masks(masks.context.cpu(), masks.targets.cpu()), sampler.sample(step, 0, 24, "cpu"))


def test_every_list_of_an_image_is_drawn_by_itself(setting: tuple[int, MasksConfig]) -> None:
    grid, cfg = setting
    sampler = build_sampler(cfg, grid, seed=7, batch_size=_BATCH)
    first = torch.cat([sampler.sample(step, 0, 24, "cpu").targets[..., 0] for step in range(20)])
    same = (first[:, 0] == first[:, 1]).double().mean()
    neighbours = (first[1:, 0] == first[:-1, 0]).double().mean()
    assert same < 0.2 and neighbours < 0.2  # 1 / number of corners, of which there are at least 9


@pytest.mark.parametrize(("first", "count"), [(-1, 4), (46, 4), (0, 0)])
def test_positions_outside_the_batch_are_refused(sampler_name: str, first: int, count: int) -> None:
    sampler = build_sampler(MasksConfig(sampler=sampler_name), 16, seed=0, batch_size=_BATCH)
    with pytest.raises(ValueError, match=r"optimization\.batch_size"):
        sampler.sample(0, first, count, "cpu")


def test_default_settings_have_no_problem(sampler_name: str) -> None:
    for grid in (14, 16, 24, 32):
        assert check(MasksConfig(sampler=sampler_name), grid, batch_size=2048, micro_batch=128) == []


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"sampler": "none"}, r"masks\.sampler is 'none'.*published, unbiased"),
        ({"context_scale": (0.0, 0.5)}, r"masks\.context_scale"),
        ({"target_scale": (0.3, 0.2)}, r"masks\.target_scale"),
        ({"target_scale": (0.3, 1.2)}, r"masks\.target_scale"),
        ({"target_aspect": (0.0, 1.0)}, r"masks\.target_aspect"),
        ({"num_targets": 0}, r"masks\.num_targets"),
        ({"num_contexts": 0}, r"masks\.num_contexts"),
        ({"truncation_group": 0}, r"masks\.truncation_group"),
        ({"context_tokens": 0}, r"masks\.context_tokens"),
        ({"min_keep": -1}, r"masks\.min_keep"),
    ],
)
def test_values_out_of_range_are_refused_by_key(change: dict[str, object], key: str) -> None:
    cfg = replace(MasksConfig(), **change)
    assert len(check(cfg, 16)) == 1
    with pytest.raises(ValueError, match=key):
        build_sampler(cfg, 16, seed=0, batch_size=8)


def test_a_grid_of_one_patch_is_refused(sampler_name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.patch_size"):
        build_sampler(MasksConfig(sampler=sampler_name), 1, seed=0, batch_size=8)


def test_take_gathers_patches_image_by_image() -> None:
    x = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([[0, 9], [5, 5], [7, 2]])
    expected = torch.stack([torch.stack([x[b, i] for i in row]) for b, row in enumerate(indices)])
    assert torch.equal(take(x, indices), expected)
