"""`--pool` of count and distance: averages of parts of the image, and attention over all tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.evals import attentive, sweep
from ijepa_ds.evals.features import pool
from ijepa_ds.evals.folders import Labelled, Pair
from ijepa_ds.evals.ranks import World
from ijepa_ds.evals.run import Settings, evaluate_pair
from ijepa_ds.evals.session import Session
from tests.evals_cases import HALF, Colours, write_blind_run

SWEEP = sweep.Recipe(lr=(1.0,), weight_decay=(0.0,), layers=("last",), heads=("bn",), epochs=30)
HEADS = attentive.Recipe(lr=(1e-2,), weight_decay=(0.01,), epochs=20, batch_size=32)


def test_pools_are_averages_of_parts() -> None:
    tokens = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool(tokens), tokens.mean(dim=1))
    parts = pool(tokens, 4).view(2, 4, 4, 3)
    grid = tokens.view(2, 8, 8, 3)
    torch.testing.assert_close(parts[:, 1, 2], grid[:, 2:4, 4:6].mean(dim=(1, 2)))
    assert pool(torch.randn(2, 14 * 14, 3), 4).shape == (2, 48)
    assert torch.equal(pool(tokens[:, :1], 4), tokens[:, 0])  # raw pixels: one token


def made(root: Path, count: int, seed: int, task: str) -> Labelled:
    """Gray images of 16 patches. `row`: the class is the row of a white patch; `pair`: whether a red and a blue one are there.

    Red and blue average to gray, so an average over the image does not see them.
    """
    root.mkdir()
    paths, labels = [], []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        pixels = rng.integers(110, 131, (16, 16, 3), dtype=np.uint8)
        one, other = rng.choice(16, 2, replace=False).tolist()
        label = one // 4 if task == "row" else number % 2
        colours = {one: (250, 250, 250)} if task == "row" else {one: (180, 120, 60), other: (60, 120, 180)} if label else {}
        for place, colour in colours.items():
            row, column = 4 * (place // 4), 4 * (place % 4)
            pixels[row : row + 4, column : column + 4] = colour
        paths.append(str(root / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
        labels.append(label)
    return Labelled(paths, torch.tensor(labels))


class Wide(Colours):
    """`Colours` with constants behind, so that the heads' LayerNorm keeps the contrast of a patch."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = super().forward(images)
        return torch.cat([tokens * 4, torch.ones_like(tokens), -torch.ones_like(tokens)], dim=2)


def scored(tmp_path: Path, task: str, how: str) -> float:
    place = tmp_path / how
    place.mkdir()
    train, test = made(place / "train", 160, 0, task), made(place / "test", 80, 1, task)
    names = tuple(map(str, range(int(train.labels.max()) + 1)))
    pair = Pair(train=train, test=test, classes=names, notes=())
    settings = Settings(
        size=16,
        mean=HALF,
        std=HALF,
        tasks=("count",),
        frame="whole",
        pool=how,
        layers="last",
        recipe=SWEEP,
        attentive_recipe=HEADS,
    )
    return evaluate_pair(Wide(), pair, settings)["scores"]["count"]


def test_parts_say_where(tmp_path: Path) -> None:
    assert scored(tmp_path, "row", "mean") < 50 < 95 < scored(tmp_path, "row", "grid4")


def test_attention_finds_one_token(tmp_path: Path) -> None:
    assert scored(tmp_path, "pair", "mean") < 70 < 95 < scored(tmp_path, "pair", "attentive")


def test_positions_from_n_on_are_mirror_images(tmp_path: Path) -> None:
    images = made(tmp_path / "a", 6, 0, "row")
    pair = Pair(train=images, test=images, classes=("a",), notes=())
    session = Session(Colours(), pair, Settings(size=16, mean=HALF, std=HALF, batch_size=4))
    tokens = torch.cat(list(session.tokens("train", torch.tensor([0, 7, 1, 2, 3, 6])))).view(6, 4, 4, 3)
    plain = torch.cat(list(session.tokens("train", torch.arange(6)))).view(6, 4, 4, 3)
    torch.testing.assert_close(tokens[[0, 2, 3, 4]], plain[:4])
    torch.testing.assert_close(tokens[[1, 5]], plain[[1, 0]].flip(2))


def test_attentive_heads_are_refused_on_several_ranks(tmp_path: Path) -> None:
    images = made(tmp_path / "a", 6, 0, "row")
    settings = Settings(size=16, mean=HALF, std=HALF, tasks=("distance",), pool="attentive")
    with pytest.raises(ValueError, match="distance with --pool attentive trains on one process"):
        evaluate_pair(Colours(), Pair(images, images, ("a",), ()), settings, world=World(0, 0, 2))


@pytest.mark.parametrize("pool_name", ["grid4", "attentive"])
def test_the_command(pool_name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for part, seed in (("train", "0"), ("test", "1")):
        arguments = ["--num", "24", "--size", "16", "--seed", seed, "--workers", "1"]
        assert cli.main(["data", "scenes", "--out", str(tmp_path / part), *arguments]) == 0
    command = ["eval", "distance", "--checkpoint", str(write_blind_run(tmp_path)), "--train", str(tmp_path / "train")]
    command += ["--test", str(tmp_path / "test"), "--out", str(tmp_path / "out"), "--no-cache", "--pool", pool_name]
    assert cli.main([*command, "--epochs", "1", "--baseline", "pixels"]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["pool"] == pool_name and set(result["scores"]) == {"distance"}
    wrong = ["--solver", "sgd"] if pool_name == "attentive" else ["--token-gib", "1"]
    assert cli.main([*command, *wrong]) == 2
    assert f"{wrong[0]}: it is {'not ' if pool_name == 'attentive' else ''}for --pool attentive" in capsys.readouterr().err
