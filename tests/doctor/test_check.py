"""`python -m ijepa_ds.train ... --check`: everything that a start would refuse, at once, and nothing is written."""

import fcntl
import os
from pathlib import Path

import pytest

from ijepa_ds import train
from ijepa_ds.cli import main
from tests.dist.launched import TINY, prepare
from tests.weights_cases import write_run

FILES = ["images", "run.yaml", "zero0.json", "zero1.json", "zero2.json", "zero3.json"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's files in the working directory."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, output) of the command with `--check`."""
    given = ["--config", "run.yaml", "--deepspeed_config", "zero2.json", "--check"]
    code = train.main([*given, *TINY, *arguments])
    return code, capsys.readouterr().out


def test_a_good_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = check(capsys, "--ranks", "2")
    assert code == 0 and "8 images = 2 ranks x 4 x 1 accumulated" in text
    assert "24 in " in text and "6 steps, 3 an epoch" in text and "a fresh start" in text
    assert "the same command without --check starts it" in text
    assert sorted(os.listdir(place)) == FILES


def test_five_mistakes_in_one_go(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run.yaml").write_text(
        "run: {dir: $NOT_SET_HERE/out, seed: 010}\ndata: {source: imags}\noptimization: {steps: 6, lrr: 0.1}\n"
    )
    (place / "zero2.json").write_text('{\n "zero_optimization": {"stage": "auto"}\n}\n')
    given = ["--config", "run.yaml", "--deepspeed_config", "zero2.json", "--check", "--ranks", "3"]
    assert train.main([*given, *[word for word in TINY if "source" not in word]]) == 2
    text = capsys.readouterr().out
    for part in (
        "run.yaml:1: run.dir: $NOT_SET_HERE is not set",
        "YAML reads 010 in base 8",
        "optimization.lrr: unknown key; did you mean 'lr'?",
        "8 images cannot be shared equally by 3 devices",
        'zero2.json:2: zero_optimization.stage: "auto"',
        "/imags' does not exist",
    ):
        assert part in text, part
    assert text.count("FAIL") == 6 and "6 problems: the run would not start" in text
    assert sorted(os.listdir(place)) == FILES


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optimization.batch_size=32", "has 24 images, fewer than one global batch"),
        ("model.init_from=run.yaml", "run.yaml"),
        ("run.dir=run.yaml/out", "is not a folder"),
        ("eval.every=1000 eval.train=images eval.test=nowhere", "eval.test: "),
        ("eval.every=1000 eval.task=depth eval.train=images eval.test=images", "eval.train: there is no folder images/images"),
    ],
)
def test_what_is_found_in_files(place: Path, capsys: pytest.CaptureFixture[str], override: str, reason: str) -> None:
    code, text = check(capsys, *override.split())
    assert code == 2 and reason in text and sorted(os.listdir(place)) == FILES


def test_a_run_that_goes_on_and_one_that_is_in_use(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = write_run(place / "out")
    (place / "out" / "config.yaml").write_text((place / "out" / "config.yaml").read_text())
    given = ["--config", "out/config.yaml", "--deepspeed_config", "zero2.json", "--check", "data.source=images"]
    train.main([*given, "run.dir=out"])
    assert "continues " in capsys.readouterr().out or cfg
    with (place / "out" / ".lock").open("a+") as handle:
        handle.write("4711 on here")
        handle.flush()
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert train.main([*given, "run.dir=out"]) == 2
        assert "is in use by another run (process 4711 on here)" in capsys.readouterr().out


def test_of_a_launchers_ranks_the_first_one_speaks(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank, says in (("1", False), ("0", True)):
        for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        code, text = check(capsys)
        assert code == 0 and ("8 images = 2 ranks x 4" in text) == says and bool(text) == says


def test_a_device_that_is_not_there(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    monkeypatch.setattr("ijepa_ds.doctor.check.list_gpus", list)
    code, text = check(capsys)
    assert code == 2 and "DS_ACCELERATOR=cuda, but nvidia-smi finds no GPU here" in text and "DS_ACCELERATOR=cpu" in text


def test_a_large_source_is_not_scanned_to_its_end(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ijepa_ds.doctor.check._SECONDS", 0.0)
    monkeypatch.setattr("ijepa_ds.doctor.check.open_within.__defaults__", (0.0,))
    code, text = check(capsys)
    assert code == 0 and "not all images were seen in 0 s" in text


def test_the_doctor_with_a_configuration_alone_starts_no_rank(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY]) == 0
    text = capsys.readouterr().out
    assert "24 in " in text and "run directory" in text and "collectives" not in text
    assert sorted(os.listdir(place)) == FILES


def test_ranks_are_for_a_check(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="^2$"):
        train.main(["--config", "x.yaml", "--deepspeed_config", "x.json", "--ranks", "2"])
    assert "--ranks: a number from 1, with --check" in capsys.readouterr().err


def test_a_driver_that_does_not_answer_is_a_row(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho no driver >&2\nexit 9\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    code, text = check(capsys)
    assert code == 2 and "nvidia-smi: no driver" in text and "8 images" in text
