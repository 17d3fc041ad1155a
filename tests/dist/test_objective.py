"""Options of the objective, through the real loop, compute what a plain single-process rewriting computes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.config import Config, PredictorConfig
from ijepa_ds.telemetry.metrics_file import read_lines
from tests import objective_reference, reference
from tests.dist import loop
from tests.dist.test_zero import TRAIN, Ranks, assert_same_bits, mean_losses, relative, worst

pytestmark = pytest.mark.dist
STEPS = 8
NARROW = {"width": 24, "heads": 2, "predictor": PredictorConfig(depth=1, width=12, heads=1)}
HIDDEN: dict = {"targets": {"layers": (1, 2)}, "model": {**NARROW, "depth": 3}}
DEEP: dict = {"targets": {"layers": (1, 3), "combine": "mean", "norm": "tanh"}, "model": {**NARROW, "depth": 3, "registers": 2}}
OWN: dict = {"objective": {"context_weight": 0.7, "context_warmup": 0.5}, "masks": {"num_contexts": 2, "num_targets": 3}}
OPTIONS = {
    "hidden": HIDDEN,
    "mean-tanh": DEEP,
    "context": OWN | {"model": NARROW},
    "spread": {
        "objective": {"variance_weight": 0.5, "covariance_weight": 20.0, "projection": 10, "context_weight": 0.1},
        "masks": {"num_contexts": 2},
        "model": NARROW,
        "max_micro_batch": 4,  # statistics over the batch need it in one pass
    },
    "all": OWN | HIDDEN | {"targets": {"layers": (1, 2), "norm": "none"}},
}
CASES = [("all", 0), ("context", 1), ("all", 2), ("hidden", 3), ("mean-tanh", 3), ("all", 3)]
CASES += [("spread", stage) for stage in (0, 2, 3)]


def config_of(images: Path, name: str) -> tuple[Config, dict]:
    """A run with one of `OPTIONS`, and its settings."""
    settings: dict = {**OPTIONS[name], "steps": STEPS, "warmup_steps": 2, "lr": 2e-3, "ema": (0.9, 1.0)}
    return loop.config_of(str(images), "unused", **settings), settings


@pytest.fixture(scope="module")
def plainly(images: Path) -> Callable[[str], reference.Trained]:
    """The plain rewriting of a run, trained once."""

    @functools.cache
    def trained(name: str) -> reference.Trained:
        cfg, _ = config_of(images, name)
        loss = functools.partial(objective_reference.loss_of, cfg)
        return reference.train(cfg, loop.schedule_of(cfg), STEPS, reference.Batches(cfg), loss_of=loss)

    return trained


@pytest.mark.parametrize(("name", "stage"), CASES)
def test_options_equal_a_plain_rewriting(
    name: str, stage: int, ranks: Ranks, tmp_path: Path, images: Path, plainly: Callable[[str], reference.Trained]
) -> None:
    """Two ranks that accumulate and recompute, against one process that looks at one image and block at a time."""
    (_, settings), expected = config_of(images, name), plainly(name)
    results = ranks(2).run(
        "train",
        **TRAIN,
        place=str(images),
        run=str(tmp_path),
        stage=stage,
        checkpointing=stage % 2 == 1,
        **({"max_micro_batch": 2} | settings),
    )
    assert len(results[0]["steps"][0]["micros"]) == (1 if name == "spread" else 2)
    np.testing.assert_allclose(mean_losses(results), expected.losses, rtol=1e-4)
    for step, norm in enumerate(expected.norms):
        assert results[1]["steps"][step]["norm"] == pytest.approx(norm, rel=1e-3)
    *_, point = read_lines(tmp_path)
    terms = {tag.removeprefix("loss/"): value for tag, value in point.items() if tag.startswith("loss/")}
    if name == "spread":
        sum_of_terms = terms["prediction"] + 0.1 * terms["context"] + 0.5 * terms["variance"] + 20 * terms["covariance"]
        assert point["loss"] == pytest.approx(sum_of_terms, rel=1e-5)
        assert min(terms.values()) > 0
    else:
        assert list(terms) == (["prediction", "context"] if "objective" in settings else [])
    # of every parameter but biases of keys, whose gradient is rounding alone
    assert max(worst(results[0]["folder"], expected.model).values()) < 2e-3
    for parameter, value in expected.model.target_encoder.named_parameters():
        assert relative(results[0]["target"][parameter], value.detach().numpy()) < 2e-3, parameter


def test_a_resumed_run_continues_the_warm_up_and_refuses_another_objective(ranks: Ranks, tmp_path: Path, images: Path) -> None:
    settings: dict = {**OPTIONS["all"], "place": str(images), "stage": 3, "steps": 6, "every": 4, "warmup_steps": 2, **TRAIN}
    settings["objective"] = {"context_weight": 0.7, "context_warmup": 1.0}
    straight = ranks(2).run("train", run=str(tmp_path / "whole"), **settings)
    early = straight[0]["saved"][0]
    resumed = ranks(2).run("train", run=str(tmp_path / "half"), resume=early, **settings)
    assert_same_bits(straight[0]["folder"], resumed[0]["folder"])
    assert CheckpointReader(Path(early)).manifest["step"] == 4
    # run.log_every is 10, so the last point of both is the mean over steps 1 to 6
    (*_, whole), (*_, half) = read_lines(tmp_path / "whole"), read_lines(tmp_path / "half")
    assert {tag: half[tag] for tag in whole if tag.startswith("loss")} == pytest.approx(
        {tag: whole[tag] for tag in ("loss", "loss/prediction", "loss/context")}
    )
    for changed in ({"objective": {"context_weight": 0.6, "context_warmup": 1.0}}, {"targets": {"layers": (1, 2)}}):
        with pytest.raises(AssertionError, match="was saved from another configuration"):
            ranks(2).run("train", run=str(tmp_path / "other"), resume=early, **(settings | changed))


def test_compiled_blocks_give_the_same_steps(ranks: Ranks, tmp_path: Path, images: Path) -> None:
    settings: dict = {"place": str(images), "stage": 3, "steps": 3, "warmup_steps": 1, **TRAIN}
    plain = ranks(2).run("train", run=str(tmp_path / "a"), **settings, **OPTIONS["all"])
    compiled = OPTIONS["all"] | {"model": {**OPTIONS["all"]["model"], "compile": True}}
    ours = ranks(2).run("train", run=str(tmp_path / "b"), backend="aot_eager", **settings, **compiled)
    np.testing.assert_allclose(mean_losses(ours), mean_losses(plain), rtol=1e-4)
