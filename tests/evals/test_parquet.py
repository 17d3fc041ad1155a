"""Evaluation from parquet to its end: the scores and files are those of the folder."""

import json
from pathlib import Path

import pytest

from ijepa_ds import cli
from tests.data.parquet_cases import write
from tests.evals_cases import write_images
from tests.weights_cases import write_run


@pytest.mark.parametrize("task", [["knn", "--k", "3"], ["linear", "--solver", "lbfgs"]])
def test_scores_from_parquet_are_those_of_the_folder(tmp_path: Path, task: list[str]) -> None:
    write_run(tmp_path / "run")
    results = {}
    for part, count in (("train", 6), ("test", 4)):
        write_images(tmp_path / part, {"a": count, "b": count, "c": count}, size=48)
        files = sorted((tmp_path / part).rglob("*.png"))
        contents = [file.read_bytes() for file in files]
        labels = [int("abc".index(file.parent.name)) for file in files]
        write(tmp_path / f"{part}.parquet", contents, labels=labels, classes=["a", "b", "c"])
    for kind, ending in (("folder", ""), ("parquet", ".parquet")):
        out = tmp_path / kind
        sources = ["--train", f"{tmp_path / 'train'}{ending}", "--test", f"{tmp_path / 'test'}{ending}"]
        given = ["--checkpoint", str(tmp_path / "run"), *sources, "--out", str(out), "--no-cache"]
        assert cli.main(["eval", *task, *given]) == 0
        results[kind] = json.loads((out / "result.json").read_text())
        assert (out / "scores.png").exists() and (out / "neighbours.png").exists() == (task[0] == "knn")
    assert results["parquet"]["scores"] == results["folder"]["scores"] and results["folder"]["scores"]
    for key in ("num_train", "num_test", "num_classes"):
        assert results["parquet"]["data"][key] == results["folder"]["data"][key]
