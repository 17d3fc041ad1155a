"""The comparisons in `benchmarks/`: turns, ratios, and the guard between revisions, with workers that only pretend."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, revisions


class Pretender:
    """A worker whose step takes as long as the file `speed` of its checkout says."""

    asked: list[str] = []

    def __init__(self, setting: Mapping[str, Any], tree: Path) -> None:
        assert (tree / "benchmarks" / "mark").read_text() == "current"  # ours, not the revision's
        self.name, self.seconds = tree.name, float((tree / "speed").read_text())

    def ask(self, what: str) -> dict[str, float]:
        self.asked.append(self.name)
        parts = dict.fromkeys(("forward+backward", "optimizer", "ema", "masks"), self.seconds)
        return parts | {"loss": 0.5, "peak": 2.0**30}

    def close(self) -> None:
        pass


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three commits: slow, fast, and slow again."""
    root = tmp_path / "repository"
    (root / "benchmarks").mkdir(parents=True)

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True)

    git("init", "-q", "-b", "main")
    for tag, speed in (("one", "2.0"), ("two", "1.0"), ("three", "1.5")):
        (root / "speed").write_text(speed)
        (root / "benchmarks" / "mark").write_text("old " + tag)
        git("add", "-A")
        git("commit", "-qm", tag)
        git("tag", tag)
    (root / "benchmarks" / "mark").write_text("current")
    monkeypatch.setattr(revisions, "ROOT", root)
    monkeypatch.setattr(revisions, "Worker", Pretender)
    Pretender.asked = []
    return root


def guard(repository: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["revisions", *arguments, "--repeats", "4", "--out", str(repository / "results.jsonl")])
    return revisions.main()


def test_the_guard_tells_faster_from_slower(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert guard(repository, monkeypatch, "one", "two") == 0
    assert "not slower" in capsys.readouterr().out
    assert guard(repository, monkeypatch, "two", "three") == 1
    assert "SLOWER: step.ratio, masks.ratio" in capsys.readouterr().out
    rows = [json.loads(line) for line in (repository / "results.jsonl").read_text().splitlines()]
    ratios = [row["median"] for row in rows if row["what"] == "step.ratio"]
    assert ratios == [2.0, pytest.approx(1 / 1.5)] and all(row["machine"]["cpu"] for row in rows)
    left = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(left.splitlines()) == 1  # nothing stays behind


def test_workers_take_turns(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard(repository, monkeypatch, "one", "two")
    first, second = Pretender.asked[:2]
    assert Pretender.asked[:8] == [first, second, second, first] * 2


def test_a_revision_that_is_not_there_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        guard(repository, monkeypatch, "one", "nowhere")


def test_ratios_are_taken_repeat_by_repeat(capsys: pytest.CaptureFixture) -> None:
    answers = {"a": [{"t": 2.0}, {"t": 30.0}, {"t": 4.0}], "b": [{"t": 1.0}, {"t": 10.0}, {"t": 2.0}]}
    *_, ratio = compare.compared("x", "s", answers, ["t"], {})
    assert ratio["median"] == 2.0 and ratio["what"] == "x.ratio" and "2.00" in capsys.readouterr().out
