"""Segmentation and depth on patch tokens: known scores, perfect features, data sets' layouts, bad labels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn

from ijepa_ds import cli
from ijepa_ds.config.sizes import ModelConfig, size_of
from ijepa_ds.errors import UserError
from ijepa_ds.evals import report
from ijepa_ds.evals.dense import pairs, windows
from ijepa_ds.evals.dense.heads import patch_labels
from ijepa_ds.evals.dense.measures import Confusion, DepthErrors
from ijepa_ds.evals.dense.recipe import Recipe as DenseRecipe
from ijepa_ds.evals.dense.tokens import Patches, Tokens
from ijepa_ds.evals.run import Settings, evaluate_pair
from ijepa_ds.model.vit import Encoder, initialise
from tests.evals_cases import HALF, Colours, write_blind_run

PATCH, CLASSES = 4, 3  # `Colours` averages 4 x 4 pixels
PALETTE = np.array([[220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)


def write_dense(root: Path, count: int, seed: int, shape: tuple[int, int] = (16, 16), mirrored: bool = False) -> None:
    """Images of coloured patches, with the class of each patch as mask and 1 + class as depth."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks", "depth"):
        (root / folder / "a").mkdir(parents=True)
    for number in range(count):
        classes = rng.integers(0, CLASSES, (shape[0] // PATCH, shape[1] // PATCH)).repeat(PATCH, 0).repeat(PATCH, 1)
        classes = classes[:, ::-1] if mirrored else classes
        Image.fromarray(PALETTE[classes]).save(root / "images" / "a" / f"{number}.png")
        Image.fromarray(classes.astype(np.uint8)).save(root / "masks" / "a" / f"{number}.png")
        np.save(root / "depth" / "a" / f"{number}.npy", (1.0 + classes).astype(np.float32))


def read(*arguments: Any, **options: Any) -> pairs.DensePair:
    return pairs.settle(pairs.read_dense(*arguments, **options))


def source(task: str, **options: object) -> pairs.Source:
    return pairs.Source(task=task, max_pixels=10**6, **options)  # type: ignore[arg-type]


def scores(task: str, train: Path, test: Path, encoder: nn.Module | None = None, **change: object) -> dict[str, float]:
    pair = read(str(train), str(test), source(task), threads=2)
    settings = Settings(size=16, mean=HALF, std=HALF, tasks=(task,), **change)  # type: ignore[arg-type]
    return evaluate_pair(encoder or Colours(), pair, settings)["scores"]


def test_scores_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(-1, 5, (4, 9, 9)), rng.integers(0, 4, (4, 9, 9))  # nothing is predicted as class 4
    table = Confusion(7)  # classes 5 and 6 are absent
    for one, other in zip(truth, predicted, strict=True):
        table.add(torch.from_numpy(one), torch.from_numpy(other))
    valid = truth >= 0
    expected = jaccard_score(truth[valid], predicted[valid], average=None, labels=range(5))
    np.testing.assert_allclose(table.iou()[:5], 100 * expected)
    assert table.iou()[5:].isnan().all()
    found = table.scores()
    assert found["mIoU"] == pytest.approx(100 * expected.mean())
    assert found["pixel accuracy"] == pytest.approx(100 * accuracy_score(truth[valid], predicted[valid]))


def test_depth_errors_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(1)
    truth, predicted = rng.uniform(0.5, 4, (3, 6, 6)), rng.uniform(0.5, 4, (3, 6, 6))
    truth[rng.random(truth.shape) < 0.2] = 0
    errors = DepthErrors()
    for one, other in zip(truth, predicted, strict=True):
        errors.add(torch.from_numpy(one), torch.from_numpy(other))
    pairs_of = [(t, p) for t, p in zip(truth.ravel(), predicted.ravel(), strict=True) if t > 0]
    assert errors.scores() == pytest.approx(
        {
            "RMSE": (sum((t - p) ** 2 for t, p in pairs_of) / len(pairs_of)) ** 0.5,
            "AbsRel": sum(abs(t - p) / t for t, p in pairs_of) / len(pairs_of),
            "delta1": 100 * sum(max(t / p, p / t) < 1.25 for t, p in pairs_of) / len(pairs_of),
        }
    )


@pytest.mark.parametrize(("width", "height"), [(16, 16), (16, 40), (50, 16), (33, 47), (128, 16)])
def test_windows_cover_an_image_and_merge_to_it(width: int, height: int) -> None:
    rng = np.random.default_rng(width)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    parts, boxes, shape = windows.cut([picture], 16)
    assert min(shape) == 16 and len(parts) == len(boxes)
    whole = np.asarray(picture if picture.size == shape else picture.resize(shape, Image.Resampling.BICUBIC))
    merged = windows.merge(torch.from_numpy(parts).permute(0, 3, 1, 2).float(), boxes, shape)
    np.testing.assert_allclose(merged.permute(1, 2, 0), whole, atol=1e-4)
    labels = rng.integers(0, 5, (height, width))
    cut = windows.cut_truth(labels, 16)
    assert cut.shape == (len(boxes), 16, 16)
    if shape == (width, height):
        for part, (top, left) in zip(cut, boxes, strict=True):
            assert np.array_equal(part, labels[top : top + 16, left : left + 16])


def test_a_patch_has_its_most_frequent_label() -> None:
    labels = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2], [-1, -1, 3, 3], [-1, 4, 3, 3]])
    assert patch_labels(labels[None], 4).tolist() == [[0, 2, -1, 3]]


@pytest.mark.parametrize("shape", [(16, 16), (16, 32)])
def test_perfect_features_give_all(tmp_path: Path, shape: tuple[int, int]) -> None:
    """`Colours` sees the class of each patch; inside patches the map is right, at their borders it is interpolated."""
    write_dense(tmp_path / "train", 24, 0, shape)
    write_dense(tmp_path / "test", 8, 1, shape)
    found = scores("segment", tmp_path / "train", tmp_path / "test")
    assert set(found) == {f"{score}, {method}" for score in ("mIoU", "pixel accuracy") for method in ("k-NN", "linear")}
    assert min(found.values()) > 90
    depth = scores("depth", tmp_path / "train", tmp_path / "test")
    assert depth["delta1"] > 70 and depth["AbsRel"] < 0.2


def test_one_class_a_window_is_exactly_right(tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("test", 5)):
        for folder in ("images", "masks", "depth"):
            (tmp_path / part / folder).mkdir(parents=True)
        for number in range(12):
            label = (number + seed) % CLASSES
            Image.new("RGB", (16, 16), tuple(int(v) for v in PALETTE[label])).save(tmp_path / part / "images" / f"{number}.png")
            Image.new("L", (16, 16), label).save(tmp_path / part / "masks" / f"{number}.png")
            Image.fromarray(np.full((16, 16), 1000 + 500 * label, np.uint16)).save(tmp_path / part / "depth" / f"{number}.png")
    assert set(scores("segment", tmp_path / "train", tmp_path / "test").values()) == {100.0}
    depth = scores("depth", tmp_path / "train", tmp_path / "test", dense_recipe=DenseRecipe(epochs=100))
    assert depth["delta1"] == 100 and depth["AbsRel"] < 0.03 and depth["RMSE"] < 0.06


def test_mirrored_images_with_mirrored_labels_score_alike(tmp_path: Path) -> None:
    for name, mirrored in (("plain", False), ("mirrored", True)):
        write_dense(tmp_path / name / "train", 16, 0, (16, 24), mirrored)
        write_dense(tmp_path / name / "test", 6, 1, (16, 24), mirrored)
    plain, mirrored = (scores("segment", tmp_path / n / "train", tmp_path / n / "test") for n in ("plain", "mirrored"))
    assert plain == pytest.approx(mirrored, abs=0.5)  # where two windows overlap by an odd number of pixels


def test_padding_with_ignored_pixels_changes_no_score(tmp_path: Path) -> None:
    """Patches see only themselves (`Colours`), so what lies beside an image must not change its pixels' scores."""
    for name in ("plain", "padded"):
        for part, count, seed in (("train", 16, 0), ("test", 6, 1)):
            write_dense(tmp_path / name / part, count, seed, (16, 16))
    for mask in sorted((tmp_path / "padded").rglob("masks/a/*.png")):
        image = mask.parents[2] / "images" / "a" / mask.name
        with Image.open(image) as picture, Image.open(mask) as labels:
            wide, ignored = Image.new("RGB", (32, 16), (9, 9, 9)), Image.new("L", (32, 16), 255)
            wide.paste(picture, (0, 0))
            ignored.paste(labels, (0, 0))
        wide.save(image)
        ignored.save(mask)
    plain, padded = (scores("segment", tmp_path / n / "train", tmp_path / n / "test") for n in ("plain", "padded"))
    assert plain == pytest.approx(padded, abs=3)  # at the right border the map is interpolated towards the padding


@pytest.mark.parametrize("layers", ["last", "last4"])
def test_tokens_do_not_depend_on_the_batch(tmp_path: Path, layers: str) -> None:
    write_dense(tmp_path / "d", 5, 0, (16, 24))
    pair = read(str(tmp_path / "d"), str(tmp_path / "d"), source("segment"), threads=1)
    encoder = Encoder(size_of(ModelConfig(name="tiny", width=32, depth=4, heads=2)), 4, 4)
    initialise(encoder, 0)
    found = []
    for batch_size in (1, 3, 64):
        settings = Settings(size=16, mean=HALF, std=HALF, batch_size=batch_size, layers=layers)
        tokens = Tokens(encoder, pair.train, pair.reading, settings, None)  # type: ignore[arg-type]
        found.append(torch.cat([part for part, _ in tokens.windows(range(5))]))
        alone = tokens.of_image(3)[0]
        torch.testing.assert_close(found[-1].view(5, -1, *alone.shape[1:])[3], alone, rtol=1e-5, atol=1e-5)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-5, atol=1e-5)


def test_tokens_that_do_not_fit_in_memory_give_the_same(tmp_path: Path) -> None:
    write_dense(tmp_path / "train", 12, 0)
    write_dense(tmp_path / "test", 4, 1)
    kept = scores("segment", tmp_path / "train", tmp_path / "test")
    again = scores("segment", tmp_path / "train", tmp_path / "test", token_gib=0.0, batch_size=5)
    assert kept == pytest.approx(again, abs=0.2)


def test_raw_pixels_are_tokens_of_patches() -> None:
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8)
    tokens = Patches(4)(images)
    assert tokens.shape == (2, 4, 48)
    assert sorted(tokens[1, 2].tolist()) == sorted(images[1, :, 4:, :4].flatten().tolist())


@pytest.mark.parametrize("task", ["segment", "depth"])
def test_the_command_writes_scores_and_a_picture(task: str, tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        arguments = ["--num", "10", "--size", "16", "--seed", str(seed), "--workers", "1", "--dense"]
        assert cli.main(["data", "objects", "--out", str(tmp_path / part), *arguments]) == 0
    options = ["--labels", "shapes"] if task == "segment" else []
    command = ["eval", task, "--checkpoint", str(write_blind_run(tmp_path)), "--train", str(tmp_path / "train")]
    command += ["--test", str(tmp_path / "test"), "--baseline", "pixels", "untrained", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--epochs", "2", *options]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["baselines"]) == ["pixels", "untrained"]
    theirs = {"segment": {"labels": "shapes", "ignore": 255}, "depth": {"depth_scale": 1000.0, "max_depth": None}}[task]
    assert result["data"] | {"layout": "folders"} | theirs == result["data"]
    if task == "segment":
        assert result["data"]["classes"] == ["ground", "cube", "sphere", "cylinder", "cone", "torus"]
        assert set(result["details"]["IoU, linear"]) == set(result["data"]["classes"])
    else:
        assert set(result["scores"]) == {"RMSE", "AbsRel", "delta1"}
    with Image.open(tmp_path / "out" / f"{task}.png") as picture:
        assert picture.width > 800
    table = report.table(result)
    assert "untrained" in table and "chance" not in table and ("top-1" not in table)


def small(folder: Path, name: str, value: int, size: tuple[int, int] = (8, 8)) -> None:
    """An image and, under the same name, a mask of one class."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L" if value >= 0 else "RGB", size, max(value, 0)).save(folder / name)


def test_layouts_of_public_data_sets(tmp_path: Path) -> None:
    for part in ("training", "validation"):
        small(tmp_path / "ade" / "images" / part, "x.jpg", -1)
        small(tmp_path / "ade" / "annotations" / part, "x.png", 150)
    for part, names in (("train", "a\nb\n"), ("val", "c\n")):
        (tmp_path / "voc" / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / "voc" / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(names)
    for name in "abc":
        small(tmp_path / "voc" / "JPEGImages", f"{name}.jpg", -1)
        small(tmp_path / "voc" / "SegmentationClass", f"{name}.png", 20)
    for part in ("train", "val"):
        small(tmp_path / "city" / "leftImg8bit" / part / "bonn", "bonn_1_leftImg8bit.png", -1)
        small(tmp_path / "city" / "gtFine" / part / "bonn", "bonn_1_gtFine_labelIds.png", 33)
        small(tmp_path / "city" / "gtFine" / part / "bonn", "bonn_1_gtFine_instanceIds.png", 1)
    for layout, folder, classes, last in (
        ("ade20k", "ade", 150, 149),
        ("voc2012", "voc", 21, 20),
        ("cityscapes", "city", 19, 18),
    ):
        place = str(tmp_path / folder)
        pair = read(place, place, source("segment", layout=layout), threads=1)
        assert len(pair.names) == classes and pair.reading.read(pair.test.truth[0]).max() == last  # type: ignore[attr-defined]
    assert [Path(path).stem for path in pair.train.paths] == ["bonn_1_leftImg8bit"]


@pytest.mark.parametrize("option", [["--ignore", "0"], ["--labels", "shapes"]])
def test_a_layout_says_where_labels_are_and_what_is_none(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["eval", "segment", "--checkpoint", "x", "--train", "x", "--test", "x", "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--layout", "voc2012", *option]) == 2
    assert f"{option[0]}: --layout voc2012 says it" in capsys.readouterr().err


def test_a_source_whose_chosen_images_have_no_depth(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_dense(tmp_path / "train", 3, 0, (16, 16))
    write_dense(tmp_path / "test", 3, 1, (16, 16))
    for path in sorted((tmp_path / "train" / "depth").rglob("*.npy"))[:2]:
        np.save(path, np.zeros_like(np.load(path)))
    command = ["eval", "depth", "--checkpoint", str(write_blind_run(tmp_path)), "--train", str(tmp_path / "train")]
    command += ["--test", str(tmp_path / "test"), "--max-train", "1", "--epochs", "1", "--out", str(tmp_path / "out")]
    codes = [cli.main([*command, "--seed", str(seed)]) for seed in range(5)]
    assert codes.count(2) == capsys.readouterr().err.count("no pixel of the chosen training images has a depth") > 0, codes


def spoil(root: Path, how: str) -> None:
    mask = root / "masks" / "a" / "1.png"
    if how == "size":
        Image.new("L", (16, 12)).save(mask)
    elif how == "float":
        Image.fromarray(np.zeros((16, 16), np.float32)).save(mask.with_suffix(".tiff"))
        mask.unlink()
    elif how == "colours":
        Image.new("RGB", (16, 16)).save(mask)
    elif how == "missing":
        mask.unlink()
    elif how == "damaged":
        mask.write_bytes(mask.read_bytes()[:40])
    elif how == "ignored":
        for file in mask.parent.glob("*.png"):
            Image.new("L", (16, 16), 255).save(file)
    elif how == "strip":
        Image.new("RGB", (200, 16)).save(root / "images" / "a" / "1.png")
        Image.new("L", (200, 16)).save(mask)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("size", "16 x 12 pixels, its image has 16 x 16"),
        ("float", "float32, expected integers"),
        ("colours", "mode RGB, expected one channel"),
        ("missing", "1 of 6 images have no file of labels"),
        ("damaged", "1.png"),
        ("ignored", "all pixels of its 6 images are ignored"),
        ("strip", "a strip of 200 x 16 pixels"),
    ],
)
def test_bad_masks_are_named_and_nothing_is_written(
    how: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_dense(tmp_path / "train", 6, 0)
    write_dense(tmp_path / "test", 6, 1)
    spoil(tmp_path / "test", how)
    command = ["eval", "segment", "--checkpoint", str(write_blind_run(tmp_path)), "--train", str(tmp_path / "train")]
    assert cli.main([*command, "--test", str(tmp_path / "test"), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "--test" in message and words in message
    assert not (tmp_path / "out").exists()


def test_classes_that_a_data_set_lacks_are_refused(tmp_path: Path) -> None:
    write_dense(tmp_path / "d", 4, 0)
    (tmp_path / "d" / "masks" / "classes.txt").write_text("red\ngreen\n")
    with pytest.raises(UserError, match="class number 2, but 2 classes are known"):
        read(str(tmp_path / "d"), str(tmp_path / "d"), source("segment"), threads=1)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "1 depths are NaN"), (-1.0, "a depth of -1"), (0.0, None)])
def test_depths_that_are_not(tmp_path: Path, value: float, words: str | None) -> None:
    write_dense(tmp_path / "d", 4, 0)
    file = tmp_path / "d" / "depth" / "a" / "2.npy"
    depth = np.load(file)
    depth[3, 3] = value
    np.save(file, depth)
    if words:
        with pytest.raises(UserError, match=words):
            read(str(tmp_path / "d"), str(tmp_path / "d"), source("depth"), threads=1)
        return
    pair = read(str(tmp_path / "d"), str(tmp_path / "d"), source("depth", max_depth=2.5), threads=1)
    values = pair.reading.read(str(file))
    assert values[3, 3] == 0 and set(np.unique(values)) <= {0.0, 1.0, 2.0}  # too far: not scored


def test_labels_too_sparse_for_a_patch_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        write_dense(tmp_path / part, 6, seed)
    for number in range(6):
        mask = np.full((16, 16), 255, np.uint8)
        mask[0, :2] = [0, 1]
        Image.fromarray(mask).save(tmp_path / "train" / "masks" / "a" / f"{number}.png")
    command = ["eval", "segment", "--checkpoint", str(write_blind_run(tmp_path)), "--train", str(tmp_path / "train")]
    assert cli.main([*command, "--test", str(tmp_path / "test"), "--out", str(tmp_path / "out"), "--epochs", "1"]) == 2
    assert "use denser labels" in capsys.readouterr().err and not (tmp_path / "out" / "result.json").exists()
