"""Features through the launcher: the same on one rank and on three, no image lost or doubled, one message when one fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ijepa_ds import config
from ijepa_ds.evals.features import extract
from ijepa_ds.evals.folders import batches, read_pair
from ijepa_ds.scenes.command import render
from ijepa_ds.weights import open_source
from ijepa_ds.weights.encoder import build_encoder
from tests.dist import jobs
from tests.dist.launched import environment, finished
from tests.dist.pool import free_port
from tests.evals_cases import write_images
from tests.waiting import limit
from tests.weights_cases import write_published

pytestmark = pytest.mark.dist
DEEPSPEED = str(Path(sys.executable).parent / "deepspeed")


def evaluate(place: Path, ranks: int, *arguments: str, launcher: bool = False) -> subprocess.CompletedProcess[str]:
    """`ranks` = 0: one process of its own; `launcher`: by `deepspeed`, as a user starts it."""
    if not launcher:
        return finished(place, list(arguments), ranks, program="ijepa_ds.evals")
    command = [DEEPSPEED, "--num_gpus", str(ranks), "--master_port", str(free_port()), "--module", "ijepa_ds.evals"]
    return subprocess.run(
        [*command, *arguments], cwd=place, env=environment(), capture_output=True, text=True, timeout=limit(600)
    )


@pytest.mark.parametrize("launcher", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_three_ranks_score_what_one_scores(launcher: bool, run_dir: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 12, "bee": 9, "cow": 10})
    write_images(tmp_path / "test", {"ant": 1, "bee": 1})  # fewer images than ranks
    options = ["rank", "--checkpoint", str(run_dir), "--which", "untrained", "--views", "2", "--batch-size", "4"]
    options += ["--device", "cpu"]
    results = []
    for ranks in (0, 3):
        out = tmp_path / f"out{ranks}"
        swapped = ["--train", "test", "--test", "train", "--out", str(out)]
        done = evaluate(tmp_path, ranks, *options, *swapped, launcher=launcher and ranks > 0)
        assert done.returncode == 0, done.stdout + done.stderr
        results.append(json.loads((out / "result.json").read_text()))
    one, three = results
    assert (one["ranks"], three["ranks"]) == (1, 3)
    np.testing.assert_allclose(three["details"]["spectrum"], one["details"]["spectrum"], atol=1e-7)
    assert three["scores"] == pytest.approx(one["scores"], rel=1e-5)


def test_features_are_the_same_on_any_number_of_ranks(ranks, run_dir: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 12, "bee": 9, "cow": 10})
    write_images(tmp_path / "test", {"ant": 1})
    arguments = {"module": "tests.dist.jobs_evals", "folder": str(tmp_path), "checkpoint": str(run_dir)}
    (alone,) = ranks(1).run("pooled_features", **arguments, batch_size=31)
    two = ranks(2).run("pooled_features", **arguments, batch_size=4)
    assert two[1] == {"train": None, "test": None}  # only rank 0 scores
    for part, rows in (("train", 31), ("test", 1)):
        assert alone[part].shape == two[0][part].shape == (rows, 32)
        np.testing.assert_allclose(two[0][part], alone[part], rtol=0, atol=1e-5)
    assert len(np.unique(alone["train"].round(4), axis=0)) > 20  # lost or doubled images would be seen


def test_features_do_not_depend_on_how_the_checkpoint_was_written(ranks, tmp_path: Path) -> None:
    """The same weights, saved by runs of every ZeRO stage, read by one rank and by two, in other batches."""
    write_images(tmp_path / "train", {"ant": 12, "bee": 9, "cow": 10}, size=48)
    write_images(tmp_path / "test", {"ant": 3}, size=48)
    weights = write_published(tmp_path / "x-ep3.pth.tar")
    encoder = build_encoder(open_source(weights, heads=3), "target")
    cfg = jobs.tiny_config()
    pixels = [next(batches(read_pair(str(tmp_path / "train"), str(tmp_path / "train")).train.paths, 48, 31, 1))]
    expected = extract(encoder, pixels, cfg.data.mean, cfg.data.std, "cpu")
    assert float(expected.std(dim=0).max()) > 0.01
    for stage, writers, readers, batch_size in ((0, 1, 2, 4), (1, 2, 1, 31), (2, 2, 2, 7), (3, 2, 1, 5)):
        run = tmp_path / f"zero{stage}"
        ranks(writers).run("start_from", stage=stage, path=str(weights), folder=str(run))
        config.save_resolved(cfg, run / "config.yaml")
        arguments = {"folder": str(tmp_path), "checkpoint": str(run), "which": "target", "batch_size": batch_size}
        found = ranks(readers).run("pooled_features", module="tests.dist.jobs_evals", **arguments)[0]
        np.testing.assert_allclose(found["train"], expected.numpy(), rtol=0, atol=1e-5)


def test_ranks_and_one_process_share_the_cache_of_features(run_dir: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 7, "bee": 6})
    write_images(tmp_path / "test", {"ant": 3, "bee": 2})
    common = ["--checkpoint", str(run_dir), "--train", "train", "--test", "test", "--device", "cpu", "--batch-size", "4"]
    common += ["--cache", str(tmp_path / "cache")]
    found = []
    for number, (task, ranks) in enumerate((("knn", 2), ("linear", 2), ("knn", 0))):
        options = [task, *common, *(["--k", "1"] if task == "knn" else [])]
        done = evaluate(tmp_path, ranks, *options, "--out", str(tmp_path / f"out{number}"))
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(json.loads((tmp_path / f"out{number}" / "result.json").read_text()))
    assert [result["features_from_cache"] for result in found] == [[], ["train", "test"], ["train", "test"]]
    assert found[2]["scores"] == found[0]["scores"] and [result["ranks"] for result in found] == [2, 2, 1]


def test_a_rank_that_cannot_read_stops_all_with_one_message(run_dir: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 12, "bee": 12})
    options = ["knn", "--checkpoint", str(run_dir), "--train", "train", "--test", "gone", "--out", "out", "--device", "cpu"]
    done = evaluate(tmp_path, 2, *options)
    assert done.returncode != 0 and done.stderr.count("'gone' does not exist") == 1, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    done = evaluate(tmp_path, 2, "attentive", *options[1:5], "--test", "train", "--out", "out")
    assert "attentive trains on one process" in done.stderr


@pytest.mark.parametrize("task", ["segment", "depth"])
def test_two_ranks_fit_the_heads_that_one_fits(task: str, run_dir: Path, tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        render(tmp_path / part, 9, 32, seed, workers=1, progress=False, classes="shape", dense_labels=True)
    options = [
        task,
        "--checkpoint",
        str(run_dir),
        "--which",
        "untrained",
        "--train",
        "train",
        "--test",
        "test",
        "--epochs",
        "3",
    ]
    options += ["--device", "cpu", "--head-batch-size", "4", *(["--labels", "shapes"] if task == "segment" else [])]
    found = []
    for ranks in (0, 2):
        done = evaluate(tmp_path, ranks, *options, "--out", str(tmp_path / f"out{ranks}"))
        assert done.returncode == 0, done.stdout + done.stderr
        found.append(json.loads((tmp_path / f"out{ranks}" / "result.json").read_text())["scores"])
    assert found[1] == pytest.approx(found[0], rel=1e-3)  # sums in another order may turn a pixel


def test_a_mask_that_one_rank_reads_is_named_by_all(run_dir: Path, tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        render(tmp_path / part, 6, 32, seed, workers=1, progress=False, classes="shape", dense_labels=True)
    last = sorted((tmp_path / "test" / "shapes").rglob("*.png"))[-1]
    last.write_bytes(b"none")
    options = ["segment", "--checkpoint", str(run_dir), "--which", "untrained", "--labels", "shapes", "--device", "cpu"]
    done = evaluate(tmp_path, 2, *options, "--train", "train", "--test", "test", "--out", str(tmp_path / "out"))
    assert done.returncode != 0 and done.stderr.count("cannot be used") == 1 and last.name in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()
