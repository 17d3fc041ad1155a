"""`benchmarks/objective.py`: which runs are made, in which order, and the table; training and scores only pretend."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import objective, objective_scores
from ijepa_ds import config
from ijepa_ds.config import ConfigError
from ijepa_ds.config.sizes import Size
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.weights import Facts
from tests.dist.launched import prepare


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command over two data sets; an option takes 2 s a step, the recipe 1 s."""

    def measure(plan: objective.Plan, args: argparse.Namespace) -> dict[str, Any]:
        if plan.option == "stop":
            raise SystemExit("stopped")
        scores = dict.fromkeys(objective_scores.SCORES, 50.0 + plan.seed)
        seconds = 1.0 if plan.option == "recipe" else 2.0
        return {**plan._asdict(), "scores": scores, "untrained": None, "step_seconds": seconds}

    monkeypatch.setattr(objective, "measure", measure)
    (tmp_path / "a").mkdir()
    data = [f"{name}={tmp_path}/a,{tmp_path}/a" for name in ("objects", "cifar10")]
    return ["--out", str(tmp_path / "out"), "--data", *data, "--steps", "240"]


def lines(command: list[str]) -> list[dict[str, Any]]:
    return objective.read(Path(command[1]) / "results.jsonl")


def test_a_stopped_screening_continues_where_it_was(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objective.OPTIONS, "stop", ("masks.num_targets=3",))
    some = [*command, "--seeds", "0", "1", "--options", "hidden", "recipe"]
    with pytest.raises(SystemExit, match="stopped"):
        objective.main([*some, "stop"])
    objective.main(some)
    objective.main(some)
    made = [(line["seed"], line["option"], line["data"]) for line in lines(command)]
    assert sorted(made) == sorted({(s, o, d) for s in (0, 1) for o in ("recipe", "hidden") for d in ("objects", "cifar10")})
    assert made[:4] == [(0, "recipe", "objects"), (0, "recipe", "cifar10"), (0, "hidden", "objects"), (0, "hidden", "cifar10")]
    objective.main([*some, "--set", "optimization.lr=1e-4"])  # another configuration
    assert len(lines(command)) == 16


def test_at_equal_time_a_slower_option_makes_fewer_steps(command: list[str]) -> None:
    with pytest.raises(SystemExit, match="first run recipe on objects"):
        objective.main([*command, "--equal-time", "--options", "recipe"])
    both = [*command, "--options", "recipe", "context"]
    objective.main(both)
    objective.main([*both, "--equal-time"])
    steps = [(line["option"], line["steps"]) for line in lines(command)]
    assert steps == [("recipe", 240)] * 2 + [("context", 240)] * 2 + [("context", 120)] * 2


def test_the_table_has_means_and_deviations_over_seeds(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    objective.main([*command, "--seeds", "0", "2", "--options", "tanh"])
    capsys.readouterr()
    objective.main([*command[:2], "--table"])
    assert "| cifar10 | tanh | 240 | 2 | 2.000 | 51.0 ± 1.4 |" in capsys.readouterr().out


@pytest.mark.parametrize("depth", [2, 8])
@pytest.mark.parametrize("data", list(objective.DATA))
def test_every_option_is_a_valid_configuration(data: str, depth: int, command: list[str], tmp_path: Path) -> None:
    options = [*objective.OPTIONS, *objective.SENSITIVITY]
    args = objective.parse_arguments([*command, "--set", f"model.depth={depth}", "--options", *options])
    args.data = [f"{data}={tmp_path}/a,{tmp_path}/a"]
    found = list(objective.plans_of(args, []))
    assert len(found) == len({plan.task for plan in found}) == len(options)
    hidden = next(plan for plan in found if plan.option == "hidden")
    assert f"targets.layers={[2, 4, 6, 8] if depth == 8 else [1, 2]}" in hidden.overrides
    for plan in found:
        try:
            config.check(config.load(args.config, plan.keys), 1)
        except ConfigError as error:  # pragma: no cover
            raise AssertionError(plan.option) from error


def test_scores_are_those_of_real_images(tmp_path: Path) -> None:
    """Two classes that differ in brightness; the grid keeps every quarter of a row apart."""
    place = prepare(tmp_path, 12)
    images = sorted(path for path in (place / "images").rglob("*") if path.is_file())
    for number, path in enumerate(images):
        folder = tmp_path / "classes" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    encoder = Encoder(Size(24, 2, 2, 48), 8, 4)
    initialise(encoder, 0)
    facts = Facts(
        source="x", kind="run", which="target", step=0, size=encoder.size, patch_size=8, image_size=32, position_grid=4
    )
    found = objective_scores.score(encoder, facts, (str(tmp_path / "classes"),) * 2, 100, 8)
    assert list(found) == list(objective_scores.SCORES) and all(0 <= value <= 100 for value in found.values())
    assert found["patches"] == 100  # 384 values of 12 images, the scored ones among them
    whole, grid = objective_scores.pooled(encoder, facts, [str(path) for path in images])
    assert whole.shape == (12, 2 * 24) and grid.shape == (12, 16 * 24)
    torch.testing.assert_close(whole[:, -24:], grid.reshape(12, 24, 16).mean(dim=2))
    assert json.dumps(found)
