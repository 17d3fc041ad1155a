"""Advice about masks is followed here: it gives a run that starts, and contexts that teach something."""

import re
from dataclasses import replace
from typing import Any

import pytest

from ijepa_ds.masks.sampler import build_sampler, check
from ijepa_ds.masks.settings import MasksConfig
from ijepa_ds.masks.thin import THIN, context_share, warning

DEFAULT = MasksConfig()


CHANGES: list[dict[str, Any]] = [{}, {"min_keep": 4}, {"min_keep": 60}, {"context_scale": (0.1, 0.2)}]


@pytest.mark.parametrize("grid", [4, 6, 8])
@pytest.mark.parametrize("changes", CHANGES)
def test_advice_leads_to_a_run(grid: int, changes: dict[str, Any]) -> None:
    cfg = replace(DEFAULT, **changes)
    texts = check(cfg, grid)
    if not texts:
        pytest.skip("these settings are possible")
    for text in texts:
        assert "min_keep below" not in text
        followed = 0
        if "to their defaults" in text:
            cfg = DEFAULT
            followed += not check(cfg, grid)
        if match := re.search(r"at least (\d+) x \1 patches", text):
            side, followed = int(match[1]), followed + 1
            assert check(cfg, side) == []
            assert context_share(build_sampler(cfg, side, 7, 64).planner, side) >= 0.97 * THIN  # of another seed
        if "masks.sampler to unbiased" in text:
            other, followed = replace(cfg, sampler="unbiased", min_keep=DEFAULT.min_keep), followed + 1
            assert check(other, grid) == []
            assert context_share(build_sampler(other, grid, 7, 64).planner, grid) >= THIN
        assert followed, text


def test_thin_contexts_are_warned_about() -> None:
    """The case of a user who lowered min_keep on 6 x 6 patches."""
    cfg = MasksConfig(min_keep=3)
    assert check(cfg, 6) == []
    text = warning(build_sampler(cfg, 6, 0, 128).planner, 6)
    assert re.match(r"contexts have \d+ to \d+ of 36 patches, less than a quarter", text)
    assert "masks.sampler: unbiased" in text


@pytest.mark.parametrize(("cfg", "grid"), [(MasksConfig(), 14), (MasksConfig(), 16), (MasksConfig(sampler="unbiased"), 8)])
def test_usual_settings_are_not(cfg: MasksConfig, grid: int) -> None:
    assert warning(build_sampler(cfg, grid, 0, 128).planner, grid) == ""
