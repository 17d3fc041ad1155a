"""Features of earlier evaluations: found again for the same encoder and images, and for no others."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ijepa_ds import cli
from ijepa_ds.evals.cache import FeatureCache, default_folder, images_identity
from ijepa_ds.evals.folders import balanced, limited, read_pair
from ijepa_ds.evals.settings import Settings
from ijepa_ds.evals.tasks import evaluate_pair
from tests.evals_cases import HALF, Colours, write_images


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    write_images(tmp_path / "train", {"cat": 6, "dog": 6})
    write_images(tmp_path / "test", {"cat": 3, "dog": 3})
    return tmp_path


def score(folders: Path, encoder: torch.nn.Module, **settings: object) -> dict:
    pair = read_pair(str(folders / "train"), str(folders / "test"))
    chosen = {"tasks": ("knn",), "k": (1,), "cache": str(folders / "cache"), **settings}
    return evaluate_pair(encoder, pair, Settings(size=16, mean=HALF, std=HALF, **chosen))  # type: ignore[arg-type]


def test_a_second_task_computes_no_features(folders: Path) -> None:
    first, second = Colours(), Colours()
    before = score(folders, first)
    assert first.seen and before["from_cache"] == []
    after = score(folders, second, tasks=("linear",), c=2.0)
    assert not second.seen and after["from_cache"] == ["train", "test"]
    again = score(folders, Colours(), k=(1, 3))
    assert again["scores"]["1-NN"] == before["scores"]["1-NN"]


class Scaled(Colours):
    """An encoder with a weight, a number that is no tensor, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.heads = torch.nn.Parameter(torch.ones(3)), 2
        self.register_buffer("table", torch.zeros(2), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * self.weight


def _weight(folders: Path, encoder: Scaled) -> None:
    encoder.weight.data[1] += 1e-6


def _heads(folders: Path, encoder: Scaled) -> None:
    encoder.heads = 4


def _buffer(folders: Path, encoder: Scaled) -> None:
    encoder.table[1] = 1.0


def _pixels(folders: Path, encoder: Scaled) -> None:
    """Another image of the same size in bytes at the same place: only the time tells."""
    path = folders / "train" / "cat" / "0.png"
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def _another(folders: Path, encoder: Scaled) -> None:
    write_images(folders / "train", {"dog": 7})


@pytest.mark.parametrize("change", [_weight, _heads, _buffer, _pixels, _another])
def test_a_change_computes_features_again(folders: Path, change: Callable[[Path, Scaled], None]) -> None:
    encoder = Scaled()
    score(folders, encoder)
    encoder.seen.clear()
    change(folders, encoder)
    found = score(folders, encoder)
    assert encoder.seen and "train" not in found["from_cache"]


@pytest.mark.parametrize("other", [{"mean": (0.4, 0.5, 0.5)}, {"frame": "whole"}, {"precision": "bfloat16"}, {"cache": None}])
def test_another_reading_computes_features_again(folders: Path, other: dict) -> None:
    score(folders, Colours())
    encoder = Colours()
    pair = read_pair(str(folders / "train"), str(folders / "test"))
    settings = {"size": 16, "mean": HALF, "std": HALF, "tasks": ("knn",), "k": (1,), "cache": str(folders / "cache")} | other
    assert evaluate_pair(encoder, pair, Settings(**settings))["from_cache"] == [] and encoder.seen  # type: ignore[arg-type]


def test_a_damaged_file_is_computed_again(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = score(folders, Colours())
    for path in (folders / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-4])
    after = score(folders, Colours())
    assert after["scores"] == before["scores"] and after["from_cache"] == [] and "are computed again" in caplog.text
    assert score(folders, Colours())["from_cache"] == ["train", "test"]


def test_a_folder_that_cannot_be_written_is_no_error(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folders / "cache").write_text("a file")
    assert score(folders, Colours())["scores"] and "features are not kept" in caplog.text


def test_the_folder_is_bounded_and_what_was_used_last_stays(tmp_path: Path) -> None:
    rows = torch.rand(64, 256)  # 64 KiB
    cache = FeatureCache(tmp_path, 3.5 * 64 / 2**20)
    for i, name in enumerate(("a", "b", "c")):
        cache.keep(name, rows + i)
        os.utime(tmp_path / f"{name}.features.safetensors", ns=(i, i))
    assert cache.find("a", 64) is not None  # used now
    cache.keep("d", rows)
    assert [cache.find(name, 64) is not None for name in "abcd"] == [True, False, True, True]
    cache.keep("e", torch.rand(640, 256))  # more than the whole folder
    assert cache.find("e", 640) is None and cache.find("a", 63) is None


def test_images_in_tars_have_an_identity(tmp_path: Path) -> None:
    import tarfile

    write_images(tmp_path / "images", {"cat": 2, "dog": 2})
    with tarfile.open(tmp_path / "x.tar", "w") as file:
        for name in ("cat", "dog"):
            file.add(tmp_path / "images" / name, name)
    pair = read_pair(str(tmp_path / "x.tar"), str(tmp_path / "images"))
    assert images_identity(pair.train.paths) != images_identity(pair.test.paths)
    before = images_identity(pair.train.paths)
    os.utime(tmp_path / "x.tar", ns=(5, 5))
    assert images_identity(pair.train.paths) != before
    assert images_identity([str(tmp_path / "x.tar")]) != before


@pytest.mark.parametrize(("most", "counts"), [(6, [2, 2, 2]), (7, [3, 2, 2]), (12, [5, 5, 2]), (3, [1, 1, 1])])
def test_a_part_of_the_images_has_as_many_of_each_class(most: int, counts: list[int]) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 20, 2]))
    chosen = balanced(labels, most, seed=3)
    assert sorted(np.bincount(labels[chosen], minlength=3), reverse=True) == counts
    assert (chosen == balanced(labels, most, seed=3)).all() and (np.diff(chosen) > 0).all()
    assert most < 6 or (chosen != balanced(labels, most, seed=4)).any()


def test_a_part_that_lacks_a_class_is_refused(folders: Path) -> None:
    pair = read_pair(str(folders / "train"), str(folders / "test"))
    with pytest.raises(ValueError, match="--max-train 1: fewer than the 2 classes"):
        limited(pair, 1, None, 0)
    assert limited(pair, 100, 100, 0) == pair
    some = limited(pair, 4, 2, 0)
    assert some.train.labels.bincount().tolist() == [2, 2] and len(some.test.paths) == 2
    assert some.notes[0] == "--max-train: 4 of 12 images, spread over the classes, chosen by seed 0"


def test_the_command(run_dir: Path, folders: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("IJEPA_DS_CACHE", str(folders / "kept"))
    assert default_folder() == folders / "kept"
    given = [
        "--checkpoint",
        str(run_dir),
        "--train",
        str(folders / "train"),
        "--test",
        str(folders / "test"),
        "--device",
        "cpu",
    ]
    given += ["--max-train", "8", "--max-test", "4"]
    for task, more, cached in (
        (["knn", "--k", "1"], [], []),
        (["linear", "--solver", "lbfgs"], [], ["train", "test"]),
        (["knn", "--k", "2"], ["--no-cache"], []),
    ):
        assert cli.main(["eval", *task, *given, *more, "--out", str(folders / task[0])]) == 0
        result = json.loads((folders / task[0] / "result.json").read_text())
        assert result["features_from_cache"] == cached and result["data"]["num_train"] == 8
        assert "--max-test: 4 of 6 images, spread over the classes, chosen by seed 0" in result["notes"]
    assert "features of an earlier evaluation" in caplog.text
    with pytest.raises(SystemExit):
        cli.main(["eval", "knn", *given, "--max-train", "0", "--out", str(folders / "out")])
