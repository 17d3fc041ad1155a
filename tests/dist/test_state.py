"""Bytes of model state that a rank holds, against the formula; and at most while it starts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ijepa_ds.bench.state import report
from ijepa_ds.model.vit import initial_value
from tests.dist.pool import Pool

pytestmark = pytest.mark.dist
Ranks = Callable[[int], Pool]


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_state_is_what_the_formula_says_at_every_stage(precision: str, ranks: Ranks, tmp_path: Path) -> None:
    """Through `ijepa-ds bench state`'s ranks."""
    for number in range(8):
        Image.new("RGB", (64, 64), (number * 30, 90, 120)).save(tmp_path / f"{number}.png")
    results = ranks(2).run("bench_state", place=str(tmp_path), precision=precision)
    for result in results:
        assert list(result["stages"]) == ["0", "1", "2", "3"]
        for stage, figures in result["stages"].items():
            assert sum(figures["held"].values()) == pytest.approx(figures["formula"], rel=0.05), stage
            assert (figures["held"]["masters"] == 0) == (precision == "float32" and stage == "0"), stage
        if precision == "bfloat16":
            whole, sharded = (sum(result["stages"][stage]["held"].values()) for stage in "03")
            assert sharded == pytest.approx(whole / 2, rel=0.05)
    assert "bytes a parameter" in report(results)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_start_is_the_same_on_any_number_of_ranks(world: int, ranks: Ranks) -> None:
    for found in ranks(world).run("start_values", stage=3):
        for name, value in found.items():
            assert (value == initial_value("encoder." + name, torch.Size(value.shape), 3).numpy()).all(), name
