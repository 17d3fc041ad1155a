"""Options and presets of `ijepa-ds eval`, and its results at the command line."""

import json
from pathlib import Path

import pytest

from ijepa_ds import cli, config
from ijepa_ds.evals import table
from ijepa_ds.evals.presets import PRESETS, markdown, published
from tests.evals_cases import write_images
from tests.weights_cases import small_config, write_run


def test_the_documented_table_of_presets_is_the_codes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "evaluate.md").read_text()
    assert markdown() in page, f"docs/evaluate.md differs; the table is now:\n{markdown()}"


def test_options_that_a_task_does_not_use_are_refused(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", str(run_dir), "--train", "x", "--test", "x", "--out", str(tmp_path / "out")]
    for task, given, wanted in [
        (
            "knn",
            "--lr 0.1 --views 3",
            ["--lr: used by linear, count, distance, attentive, finetune, lowshot,", "--views: used by rank only"],
        ),
        ("finetune", "--select holdout", ["--select: used by linear, count, distance, attentive only"]),
        ("lowshot", "--select holdout", ["--select"]),
        ("count", "--augment", ["--augment: used by linear only"]),
        ("linear", "--solver lbfgs --lr 0.1 --nesterov", ["--lr: it is for --solver sgd or lars", "--nesterov: it is for"]),
        ("linear", "--solver sgd --C 3", ["--C: it is for --solver lbfgs"]),
        (
            "lowshot",
            "--epochs 3 --list a.txt --draws 2",
            ["--epochs: it is for --finetune", "--draws: --list names the images"],
        ),
        ("rank", "--k 5", ["--k: used by knn, all only"]),
    ]:
        assert cli.main(["eval", task, *options, *given.split()]) == 2
        message = capsys.readouterr().err
        assert all(line in message for line in wanted), message
    assert not (tmp_path / "out").exists()


def test_presets_name_options_that_exist() -> None:
    import argparse

    from ijepa_ds.options.evals import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {action.dest: action for action in parser._actions}
    for name, preset in PRESETS.items():
        assert set(preset.options) <= set(known), name
        assert all(known[option].default is None for option in preset.options), name  # or it could not be filled in
        assert preset.layout and preset.score and preset.published, name
    assert published("paper-linear", "huge/16", 448)["value"] == 81.1
    assert published("paper-linear", "huge/14", 224)["value"] == 79.3


def test_presets_refuse_what_does_not_fit(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", str(run_dir), "--train", "x", "--test", "x", "--out", str(tmp_path / "out")]
    for task, preset, message in [
        ("knn", "paper-linear", "is for `ijepa-ds eval linear`"),
        ("lowshot", "paper-1pct", "needs --list"),
    ]:
        assert cli.main(["eval", task, *options, "--preset", preset]) == 2
        assert message in capsys.readouterr().err


def test_weights_without_a_target(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "run")
    context = tmp_path / "context"
    exported = ["--which", "context", "--format", "safetensors", "--out", str(context)]
    assert cli.main(["export", "--run", str(tmp_path / "run"), *exported]) == 0
    write_images(tmp_path / "train", {"ant": 6, "bee": 6}, size=48)
    options = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "train"), "--out", str(tmp_path / "out")]
    arguments = ["eval", "knn", "--k", "5", "--device", "cpu", "--checkpoint", str(context), *options]
    assert cli.main([*arguments, "--which", "target"]) == 2
    assert "has no target (it has context)" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert cli.main(arguments) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["checkpoint"]["which"] == "context"
    assert any("no target encoder" in note for note in result["notes"])


def test_a_table_of_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed, (before, after) in enumerate(((20.0, 40.0), (22.0, 44.0))):
        out = tmp_path / f"seed{seed}" / "eval" / "knn"
        out.mkdir(parents=True)
        told = {"scores": {"20-NN": after}, "baselines": {"untrained": {"scores": {"20-NN": before}}}}
        (out / "result.json").write_text(json.dumps(told))
    runs = [str(tmp_path / "seed0"), str(tmp_path / "seed1")]
    assert table.main(runs) == 0
    shown = capsys.readouterr().out
    assert "| | untrained | trained | gain over untrained |" in shown
    assert "| 20-NN | 21.0 ± 1.4 | 42.0 ± 2.8 | +21.0 ± 1.4 |" in shown
    (tmp_path / "seed1" / "eval" / "knn" / "result.json").write_text(json.dumps(told | {"scores": {"10-NN": 1.0}}))
    assert table.main(runs) == 2 and "not every run has each of: 20-NN, 10-NN" in capsys.readouterr().err
    assert table.main([*runs, str(tmp_path)]) == 2 and "no eval/*/result.json" in capsys.readouterr().err
    (tmp_path / "seed0" / "eval" / "all").mkdir()  # the same score, evaluated twice
    told["scores"] = {"20-NN": 46.0}
    (tmp_path / "seed0" / "eval" / "all" / "result.json").write_text(json.dumps(told))
    assert table.main(runs[:1]) == 0
    shown = capsys.readouterr().out
    assert "| 20-NN (all) | 22.0 | 46.0 | +24.0 |" in shown and "| 20-NN (knn) | 20.0 | 40.0 | +20.0 |" in shown


def test_raw_pixels_beside_several_layers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """They have one layer; a network of their own they do not have."""
    folder = tmp_path / "run"
    small_config(folder)
    cfg = config.load(tmp_path / "written.yaml", ["model.depth=4"])
    write_run(folder, cfg)
    write_images(tmp_path / "train", {"ant": 12, "bee": 12}, size=48)
    options = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "train"), "--out", str(tmp_path / "out")]
    arguments = ["--device", "cpu", "--checkpoint", str(folder), *options, "--baseline", "pixels"]
    assert cli.main(["eval", "knn", "--k", "5", "--layers", "last4", *arguments]) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["layers"] == "last4" and "5-NN" in result["baselines"]["pixels"]["scores"]
    assert cli.main(["eval", "lowshot", "--finetune", *arguments]) == 2
    assert "pixels: lowshot needs an encoder" in capsys.readouterr().err


def test_bench_says_what_reading_costs(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_images(tmp_path / "images", {".": 5})
    options = ["--checkpoint", str(run_dir), "--images", str(tmp_path / "images"), "--num", "12", "--repeats", "2"]
    assert cli.main(["bench", "eval", *options, "--features", "40", "--classes", "3", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "images a second" in shown and "80 heads on 40 features, 3 classes" in shown
    assert cli.main(["bench", "eval", *options, "--classes", "1"]) == 2


def test_another_image_size_is_said(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_images(tmp_path / "train", {"ant": 12, "bee": 12}, size=24)
    options = ["--train", str(tmp_path / "train"), "--test", str(tmp_path / "train"), "--out", str(tmp_path / "out")]
    arguments = ["eval", "knn", "--k", "5", "--device", "cpu", *options]
    assert cli.main([*arguments, "--checkpoint", str(run_dir), "--which", "untrained", "--image-size", "24"]) == 0
    notes = json.loads((tmp_path / "out" / "result.json").read_text())["notes"]
    assert any("24 pixels, trained on 16: positions are interpolated" in note for note in notes)
    assert cli.main([*arguments, "--checkpoint", str(run_dir), "--image-size", "30"]) == 2
    assert "multiple of the encoder's patch size" in capsys.readouterr().err
