"""Runs of several stages: made longer, branched, with small crops first; through the real trainer, to the last bit."""

from pathlib import Path

import pytest

from tests.dist.launched import Run
from tests.dist.test_zero import assert_same_bits

pytestmark = pytest.mark.dist
STAGES = (
    *("optimization.schedule=wsd", "optimization.final_weight_decay=0.04", "optimization.ema=[0.99, 0.99]"),
    *("data.crop_size=48", "data.early_crop_size=32", "data.early_steps=3", "model.target_precision=bfloat16"),
    *("run.checkpoint_every=2", "run.keep_last=9"),
)


def checkpoint(place: Path, run: str, step: int) -> str:
    return str(place / run / "checkpoints" / f"step_{step:08d}")


def test_a_longer_run_and_a_branch_equal_a_straight_one(place: Path) -> None:
    def train(*overrides: str, ranks: int = 2) -> tuple[int, str]:
        run = Run(place, *STAGES, *overrides, ranks=ranks, stage=3)
        codes = run.wait(600)
        return max(codes), run.output

    length = ("optimization.steps=6", "optimization.cooldown_steps=2")
    for arguments in (
        ("run.dir=straight", *length),
        ("run.dir=longer", "optimization.steps=4"),  # constant to its end
        ("run.dir=longer", *length),
        ("run.dir=branch", *length, f"run.branch_from={checkpoint(place, 'longer', 2)}"),  # among the small crops
    ):
        code, output = train(*arguments)
        assert code == 0, output
    assert "(step 2)" in output  # the banner's
    for run in ("longer", "branch"):
        assert_same_bits(checkpoint(place, "straight", 6), checkpoint(place, run, 6))
    code, output = train("run.dir=straight", "optimization.steps=9", ranks=1)
    assert code == 2 and "was saved at step 6" in output and "only the first 4 steps" in output, output
