"""Evaluations: the same digits as scikit-learn, no score from broken features or folders, results on disk."""

import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ijepa_ds import cli
from ijepa_ds.config.sizes import Size
from ijepa_ds.evals import knn, linear
from ijepa_ds.evals.features import extract, set_image_size
from ijepa_ds.evals.folders import batches, read_pair
from ijepa_ds.evals.run import Settings, evaluate_folder
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.telemetry.events import read_scalars
from tests.evals_cases import HALF, Colours, clusters, write_images

# --- k-NN


@pytest.mark.parametrize("vote", ["weighted", "majority"])
def test_knn_agrees_with_sklearn(vote: str) -> None:
    (train, labels), (test, wanted) = clusters(400), clusters(150, seed=1)
    ours = knn.evaluate(train, labels, test, wanted, k=(1, 10, 20, 100), vote=vote)
    weights = "uniform" if vote == "majority" else (lambda distance: np.exp((1 - distance) / 0.07))
    for k in (1, 10, 20, 100):
        theirs = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
        theirs.fit(train.numpy(), labels.numpy())
        assert ours[f"{k}-NN"] == pytest.approx(100 * theirs.score(test.numpy(), wanted.numpy()), abs=1e-9)
    assert 30 < ours["20-NN"] < 95  # the comparison means something


def test_knn_depends_on_temperature_and_scale_does_not_matter() -> None:
    (train, labels), (test, wanted) = clusters(300), clusters(200, seed=1)
    scores = [knn.evaluate(train, labels, test, wanted, k=(100,), temperature=t) for t in (0.01, 0.07, 100.0)]
    assert scores[0] != scores[2]
    assert scores[2] == knn.evaluate(train, labels, test, wanted, k=(100,), vote="majority")
    assert scores[1] == knn.evaluate(train * 7, labels, test * 0.01, wanted, k=(100,))


def test_knn_order_and_block_do_not_matter() -> None:
    (train, labels), (test, wanted) = clusters(300), clusters(101, seed=1)
    expected = knn.evaluate(train, labels, test, wanted)
    a, b = torch.randperm(300), torch.randperm(101)
    assert knn.evaluate(train[a], labels[a], test[b], wanted[b]) == expected
    for block in (1, 7, 100, 1000):
        assert knn.evaluate(train, labels, test, wanted, block=block) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (301,)}, "300 training"),
        ({"k": (0,)}, "from 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"vote": "x"}, "vote"),
    ],
)
def test_knn_refuses(change: dict, message: str) -> None:
    train, labels = clusters(300)
    with pytest.raises(ValueError, match=message):
        knn.evaluate(train, labels, train, labels, **change)


# --- linear


@pytest.mark.parametrize("c", [1.0, 0.01])
def test_linear_agrees_with_sklearn(c: float) -> None:
    (train, labels), (test, wanted) = clusters(300), clusters(200, seed=1)
    train[:, 3], test[:, 3] = 5.0, 5.0  # constant: no division by zero
    train[:, 4], test[:, 4] = train[:, 4] * 1000 + 1e4, test[:, 4] * 1000 + 1e4
    ours = linear.evaluate(train, labels, test, wanted, c=c)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
    theirs.fit(train.numpy(), labels.numpy())
    assert ours["top1"] == pytest.approx(100 * theirs.score(test.numpy(), wanted.numpy()), abs=1e-9)
    assert ours["train_top1"] == pytest.approx(100 * theirs.score(train.numpy(), labels.numpy()), abs=1e-9)
    assert ours["iterations"] == theirs[-1].n_iter_.max()
    assert ours["converged"] == 1 and 30 < ours["top1"] < 95


def test_linear_does_not_enlarge_rounding() -> None:
    (train, labels), (test, wanted) = clusters(200), clusters(100, seed=1)
    expected = linear.evaluate(train[:, 1:], labels, test[:, 1:], wanted)
    train[:, 0], test[:, 0] = 3.0 + 1e-7 * labels, 3.0 + 1e-7 * (4 - wanted)  # a feature that would mislead
    assert linear.evaluate(train, labels, test, wanted) == expected


def test_linear_order_does_not_matter() -> None:
    (train, labels), (test, wanted) = clusters(300), clusters(200, seed=1)
    a, b = torch.randperm(300), torch.randperm(200)
    expected = linear.evaluate(train, labels, test, wanted)
    again = linear.evaluate(train[a], labels[a], test[b], wanted[b])
    assert again["top1"] == pytest.approx(expected["top1"], abs=0.51)  # the solver stops at a tolerance


def test_linear_says_when_it_has_not_converged(caplog: pytest.LogCaptureFixture) -> None:
    train, labels = clusters(200)
    with caplog.at_level(logging.WARNING):
        score = linear.evaluate(train, labels, train, labels, max_iterations=2)
    assert score["converged"] == 0 and "not converged after 2" in caplog.text


def test_linear_refuses_a_single_class() -> None:
    train, _ = clusters(20)
    zeros = torch.zeros(20, dtype=torch.int64)
    with pytest.raises(ValueError, match="single class"):
        linear.evaluate(train, zeros, train, zeros)


@pytest.mark.parametrize("evaluate", [knn.evaluate, linear.evaluate])
def test_broken_sets_are_refused(evaluate) -> None:
    (train, labels), (test, wanted) = clusters(300), clusters(50, seed=1)
    broken = test.clone()
    broken[[3, 7]], broken[9, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match="test features are NaN or infinite for 3 of 50"):
        evaluate(train, labels, broken, wanted)
    with pytest.raises(ValueError, match="train: expected features"):
        evaluate(train, labels[:-1], test, wanted)
    with pytest.raises(ValueError, match="test: expected features"):
        evaluate(train, labels, test[:0], wanted[:0])
    with pytest.raises(ValueError, match="16 values, test 15"):
        evaluate(train, labels, test[:, :-1], wanted)
    with pytest.raises(ValueError, match="below 0"):
        evaluate(train, labels - 1, test, wanted)


# --- features


def test_features_are_the_mean_of_the_tokens() -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    features = extract(Colours(), [images], (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "cpu")
    expected = (images / 255 - [0.4, 0.5, 0.6]).mean(axis=(1, 2)) / [0.2, 0.3, 0.4]
    assert features.dtype == torch.float32 and features.shape == (11, 3)
    np.testing.assert_allclose(features.numpy(), expected, atol=1e-5)


def test_features_do_not_depend_on_the_batches() -> None:
    encoder = Encoder(Size(32, 2, 2, 64), 4, 4)
    initialise(encoder, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), dtype=np.uint8)
    whole = extract(encoder, [images], HALF, HALF, "cpu")
    parts = extract(encoder, [images[:4], torch.from_numpy(images[4:10]), images[10:]], HALF, HALF, "cpu")
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert whole.std(dim=0).min() > 1e-3  # images differ
    lower = extract(encoder, [images], HALF, HALF, "cpu", torch.bfloat16)
    assert lower.dtype == torch.float32 and not torch.equal(lower, whole)
    torch.testing.assert_close(lower, whole, rtol=0, atol=0.1)


def test_modes_come_back_even_after_an_error() -> None:
    encoder = Colours().train()
    encoder.dropout.eval()
    images = np.zeros((2, 16, 16, 3), dtype=np.uint8)
    extract(encoder, [images], HALF, HALF, "cpu")
    assert encoder.seen == [(False, False, torch.float32)]
    assert encoder.training and not encoder.dropout.training
    with pytest.raises(ValueError, match=r"uint8 \[B, S, S, 3\]"):
        extract(encoder, [images.astype(np.float32) + 2], HALF, HALF, "cpu")
    assert encoder.training and not encoder.dropout.training
    with pytest.raises(ValueError, match="no images"):
        extract(encoder, [], HALF, HALF, "cpu")


def test_a_diverged_encoder_is_refused() -> None:
    encoder = Encoder(Size(32, 2, 2, 64), 4, 4)
    initialise(encoder, seed=0)
    with torch.no_grad():
        encoder.blocks[1].mlp.fc1.weight[0, 0] = math.nan
    images = np.zeros((5, 16, 16, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="NaN or infinite for 5 of 5 images"):
        extract(encoder, [images[:3], images[3:]], HALF, HALF, "cpu")


def test_another_image_size() -> None:
    encoder = Encoder(Size(32, 1, 2, 64), 4, 4)
    initialise(encoder, seed=0)
    before = encoder.pos_embed.clone()
    set_image_size(encoder, 16)
    assert torch.equal(encoder.pos_embed, before)
    set_image_size(encoder, 24)
    assert encoder(torch.zeros(1, 3, 24, 24)).shape == (1, 36, 32)
    with pytest.raises(ValueError, match="multiple of the encoder's patch size 4"):
        set_image_size(encoder, 30)


# --- folders


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 3, "bee": 1, "cat": 4, "dog": 2})
    write_images(tmp_path / "test", {"bee": 2, "cat": 1})
    pair = read_pair(str(tmp_path / "train"), str(tmp_path / "test"))
    assert pair.classes == ("ant", "bee", "cat", "dog")
    assert [pair.classes[label] for label in pair.test.labels] == ["bee", "bee", "cat"]
    assert pair.train.labels.tolist() == [0] * 3 + [1] + [2] * 4 + [3] * 2
    assert pair.chance == pytest.approx(100 / 3)  # always "cat"
    assert pair.notes == ("classes without a test image: ant, dog", "classes with one training image only: bee")


def test_folders_that_cannot_be_scored(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 2, "bee": 2})
    write_images(tmp_path / "test", {"ant": 1, "wasp": 1})
    write_images(tmp_path / "flat", {".": 2})
    write_images(tmp_path / "one", {"ant": 2})
    write_images(tmp_path / "mixed", {"ant": 2, ".": 3})
    train = str(tmp_path / "train")
    for other, message in [
        ("test", "--test.*classes that --train.*lacks: wasp.*training classes are ant, bee"),
        ("flat", "--test.*has no class folders; expected one folder a class"),
        ("mixed", "--test.*has 3 images without a class, such as .*"),
        ("absent", "--test.*does not exist"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_pair(train, str(tmp_path / other))
    with pytest.raises(ValueError, match="--train.*single class 'ant'"):
        read_pair(str(tmp_path / "one"), train)


def test_unreadable_images_and_equal_folders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path, {"ant": 2, "bee": 2})
    (tmp_path / "ant" / "broken.jpg").write_bytes(b"no image")
    notes = " | ".join(read_pair(str(tmp_path), str(tmp_path)).notes)
    assert "--test: 1 unreadable images left out" in notes and "same folder" in notes


def test_batches_keep_the_order(tmp_path: Path) -> None:
    write_images(tmp_path, {"ant": 5, "bee": 4})
    paths = read_pair(str(tmp_path), str(tmp_path)).train.paths
    expected = np.stack([np.asarray(Image.open(path)) for path in paths])
    for size in (1, 4, 9, 100):
        parts = list(batches(paths, 16, size, threads=2))
        assert all(len(part) == size for part in parts[:-1])
        assert np.array_equal(np.concatenate(parts), expected)
    Path(paths[6]).write_bytes(b"gone bad since")
    with pytest.raises(ValueError, match=str(Path(paths[6]).name)):
        list(batches(paths, 16, 4, threads=1))


# --- the whole


def test_evaluate_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "train", {"ant": 8, "bee": 8, "cat": 8})
    write_images(tmp_path / "test", {"bee": 3, "cat": 3})
    settings = Settings(size=16, mean=HALF, std=HALF, k=(5, 10, 200), batch_size=7)
    found = evaluate_folder(Colours(), str(tmp_path / "train"), str(tmp_path / "test"), settings)
    assert found["scores"] == {"5-NN": 100.0, "10-NN": 100.0, "linear": 100.0}
    assert any("k = 200 left out" in note for note in found["notes"])
    only = Settings(size=16, mean=HALF, std=HALF, tasks=("linear",), k=(200,), max_iterations=1)
    found = evaluate_folder(Colours(), str(tmp_path / "train"), str(tmp_path / "test"), only)
    assert list(found["scores"]) == ["linear"] and any("not converged" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"k": (100,)}, "all above the 16"), ({"tasks": ("knn", "svm")}, "tasks"), ({"tasks": ()}, "tasks")],
)
def test_settings_that_cannot_be(tmp_path: Path, change: dict, message: str) -> None:
    write_images(tmp_path, {"ant": 8, "bee": 8})
    with pytest.raises(ValueError, match=message):
        evaluate_folder(Colours(), str(tmp_path), str(tmp_path), Settings(size=16, mean=HALF, std=HALF, **change))


def test_command(run_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "train", {"ant": 12, "bee": 12})
    write_images(tmp_path / "test", {"ant": 6, "bee": 5})
    options = ["--checkpoint", str(run_dir), "--train", str(tmp_path / "train"), "--test", str(tmp_path / "test")]
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        args = ["eval", "all", *options, "--baseline", "untrained", "--out", str(out), "--device", "cpu"]
        assert cli.main([*args, "--k", "5", "20"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert list(result["scores"]) == list(result["baseline"]["scores"]) == ["5-NN", "20-NN", "linear"]
    assert all(result["scores"][name] < 100 == result["baseline"]["scores"][name] for name in ("5-NN", "linear"))
    assert result["chance"] == pytest.approx(100 * 6 / 11)
    assert result["checkpoint"]["step"] == 20 and result["checkpoint"]["which"] == "target"
    assert result["data"] | {"num_train": 24, "num_test": 11, "num_classes": 2} == result["data"]
    assert result["settings"]["size"] == 16 and result["config"]["run.seed"] == 3
    assert {"torch", "scikit-learn", "ijepa_ds"} <= set(result["versions"]) and result["seconds"]["total"] > 0
    assert {path.name for path in out.iterdir() if "tfevents" not in path.name} == {
        "result.json",
        "scores.png",
        "neighbours.png",
    }
    scalars = read_scalars(out)
    assert scalars["eval/20-NN"][0].tolist() == [20]
    assert scalars["eval/linear"][1][0] == pytest.approx(result["scores"]["linear"])
    assert scalars["eval_untrained/linear"][1][0] == pytest.approx(100)
    assert len(result["checkpoint"]["sha256"]) == 64 and "git_revision" in result["versions"]
    with Image.open(out / "scores.png") as picture:
        assert picture.width >= 600 and picture.height >= 400
    for word in ("target", "untrained", "20-NN", "linear", "chance"):
        assert word in caplog.text
    assert cli.main(["eval", "knn", *options, "--which", "untrained", "--k", "5", "20", "--out", str(out)]) == 0
    again = json.loads((out / "result.json").read_text())
    assert again["scores"] == {name: result["baseline"]["scores"][name] for name in ("5-NN", "20-NN")}
    assert again["baseline"] is None and again["checkpoint"]["step"] == 0


def test_command_with_a_wrong_folder_writes_nothing(run_dir: Path, tmp_path: Path, capsys) -> None:
    write_images(tmp_path / "train", {"ant": 2, "bee": 2})
    options = ["--checkpoint", str(run_dir), "--train", str(tmp_path / "train"), "--test", str(tmp_path / "no")]
    assert cli.main(["eval", "knn", *options, "--out", str(tmp_path / "out")]) == 2
    assert "--test" in capsys.readouterr().err and not (tmp_path / "out").exists()
