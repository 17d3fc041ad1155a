"""Nearest training images: the right ones, written by `eval knn`, drawn and shown in the summary."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.evals.folders import Labelled, Pair
from ijepa_ds.evals.neighbours import nearest
from tests.evals_cases import write_blind_run, write_images


def test_nearest_by_cosine_and_test_images_of_each_class_in_turn() -> None:
    rng = np.random.default_rng(0)
    train, test = (torch.from_numpy(rng.standard_normal((n, 6))) for n in (20, 9))
    labels = torch.tensor([2, 2, 2, 2, 0, 0, 1, 0, 2])
    pair = Pair(
        train=Labelled([f"train{i}" for i in range(20)], torch.arange(20) % 3),
        test=Labelled([f"test{i}" for i in range(9)], labels),
        classes=("a", "b", "c"),
        notes=(),
    )
    found = nearest(train, test, pair, queries=5, count=3)
    assert [row["image"] for row in found] == ["test4", "test6", "test0", "test5", "test1"]
    assert [row["class"] for row in found] == ["a", "b", "c", "a", "c"]
    for row in found:
        query = test[int(row["image"][4:])]
        similarity = [float(query @ other / query.norm() / other.norm()) for other in train]
        best = sorted(range(20), key=lambda i: -similarity[i])[:3]
        assert row["nearest"] == [f"train{i}" for i in best]
        assert row["classes"] == ["abc"[i % 3] for i in best]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    write_images(tmp_path / "train", {"red": 6, "blue": 6})
    write_images(tmp_path / "test", {"red": 3, "blue": 3})
    run = write_blind_run(tmp_path)
    sources = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]
    command = ["eval", "knn", "--checkpoint", str(run), *sources, "--k", "1", "--out", str(tmp_path / "eval")]
    assert cli.main([*command, "--baseline", "untrained"]) == 0
    return tmp_path


def test_eval_draws_them(result: Path) -> None:
    found = json.loads((result / "eval" / "result.json").read_text())["baselines"]["untrained"]["details"]["neighbours"]
    assert len(found) == 6 and {row["class"] for row in found} == {"red", "blue"}
    assert all(Path(name).is_file() for row in found for name in (row["image"], *row["nearest"]))
    with Image.open(result / "eval" / "neighbours.png") as picture:
        assert picture.width > 1000 and np.asarray(picture.convert("RGB")).std() > 5
