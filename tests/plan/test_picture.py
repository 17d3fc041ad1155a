"""`plan --plot` on more machines, and the bytes that a step moves between its products."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from ijepa_ds.config import load
from ijepa_ds.config.batch import plan_of as plan_of_batch
from ijepa_ds.model.work import Work, work_of
from ijepa_ds.plan import picture
from ijepa_ds.plan.report import Plan
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plan.timing import elementwise_bytes

PUBLISHED = "configs/in1k_vith14.yaml"


def test_the_picture_shows_the_micro_batches_of_a_run(repository: Path) -> None:
    cfg = load(repository / PUBLISHED, ["optimization.batch_size=1152", "optimization.max_micro_batch=16"])
    seen: list[Spread] = []

    def plan(work: Work, spread: Spread) -> Plan:
        seen.append(spread)
        return cast(Plan, None)

    picture.ladder(cfg, work_of(cfg), Spread(stage=2, nodes=1, gpus=8, micro_batch=16, accumulation=9), plan)
    assert [one.nodes for one in seen] == [1, 2, 4, 8, 16]
    for one in seen:
        real = plan_of_batch(cfg, one.nodes * 8)
        assert (one.micro_batch, one.accumulation) == (real.micro_batch, real.accumulation)


@pytest.mark.parametrize(("compile_", "factor"), [(True, 1.2), (False, 1.375)])
def test_a_gate_moves_more_bytes(compile_: bool, factor: float, repository: Path) -> None:
    """Of ViT-H in bfloat16: 4 (r + b) d + 3 b H instead of 2 b H when compiled."""
    cfg = load(repository / PUBLISHED, ["model.precision=bfloat16"])
    cfg = replace(cfg, model=replace(cfg.model, compile=compile_))
    gated = replace(cfg, model=replace(cfg.model, swiglu=True))
    moved = [elementwise_bytes(replace(work_of(one), contexts=0)) for one in (cfg, gated)]  # of the target encoder
    assert moved[1] / moved[0] == pytest.approx(factor)
