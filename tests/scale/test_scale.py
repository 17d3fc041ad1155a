"""`ijepa-ds scale` at its surface: ladder files, runs (by a stand-in for the trainer), laws, predictions, plans."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from ijepa_ds import cli, config
from ijepa_ds.scale import execute, power
from ijepa_ds.scale.ladder import Ladder, read
from ijepa_ds.scale.protocol import wanted_settings
from tests.waiting import limit

LADDER = """\
ladder:
  out: {out}
  config: {repository}/configs/cifar10_tiny.yaml
  deepspeed_config: {repository}/ds_configs/zero0.json
  launch: {python} {trainer}
  gpu: {gpu}
  warmup: 0.1
  overrides: [model.predictor.width=24, model.predictor.heads=2]
models:
  w32: {{overrides: [model.width=32, model.heads=2]}}
  w64: {{overrides: [model.width=64, model.heads=2]}}
  w96: {{overrides: [model.width=96, model.heads=2]}}
budgets:
  1k: {{images: 1000}}
  4k: {{images: 4000}}
eval: {{train: somewhere/train, test: somewhere/test, score: 20-NN}}
next: {{images: 16000, overrides: [model.width=128, model.heads=2]}}
"""
GPU = "{name: toy, memory_gib: 1, bfloat16_tflops: 1, float32_tflops: 1, memory_gbps: 100, link_gbps: 1, network_gbps: 1}\n"
# Stands in for the trainer: moves the run that the test has prepared to where it is to run, or fails once.
TRAINER = """\
import pathlib, shutil, sys
folder = pathlib.Path(next(w for w in reversed(sys.argv) if w.startswith("run.dir=")).partition("=")[2])
assert "optimization.steps=31" in sys.argv or "optimization.steps=125" in sys.argv, sys.argv
stumble = folder.parents[1] / "stumble"
if folder.parts[-2:] == ("w64", "1k") and stumble.exists():
    stumble.unlink()
    sys.exit(75)
shutil.copytree(folder.parents[2] / "prepared" / folder.parent.name / folder.name, folder, dirs_exist_ok=True)
"""


def ladder_file(tmp_path: Path, repository: Path, text: str = LADDER) -> Path:
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "gpu.yaml").write_text(GPU)
    path, out = tmp_path / "ladder.yaml", tmp_path / "out"
    names = {"python": sys.executable, "trainer": tmp_path / "trainer.py", "gpu": tmp_path / "gpu.yaml"}
    path.write_text(text.format(out=out, repository=repository, **names))
    return path


def prepare(ladder: Ladder, folder: Path, errors: list[float]) -> None:
    """Finished and scored runs, as trainer and evaluation leave them."""
    for rung, error in zip(ladder.rungs, errors, strict=True):
        run = folder / rung.name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(config.to_text(rung.cfg))
        (run / "environment.json").write_text(json.dumps({"world_size": 1}))
        (run / "completed.json").write_text(json.dumps({"steps": rung.steps}))
        with SummaryWriter(str(run)) as events:
            for step in range(1, rung.steps + 1):
                events.add_scalar("loss", 0.3 if step > 0.9 * rung.steps else 1.0, step)
                events.add_scalar("speed/seconds_per_step", 0.36, step)
        (run / "eval").mkdir()
        result = {
            "scores": {"20-NN": 100 - error, "linear": 50.0},
            "data": {"train": "somewhere/train", "test": "somewhere/test"},
            "checkpoint": {"step": rung.steps},
            "settings": wanted_settings(rung.cfg, ladder.evaluation) | {"device": "cuda:0"} if ladder.evaluation else {},
        }
        (run / "eval" / "result.json").write_text(json.dumps(result))


def scale(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ijepa_ds.cli", "scale", str(path), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit(600))


@pytest.mark.slow
def test_a_ladder_is_run_continued_and_told(tmp_path: Path, repository: Path) -> None:
    path = ladder_file(tmp_path, repository)
    ladder = read(path)
    assert [rung.name for rung in ladder.rungs] == ["w32/1k", "w32/4k", "w64/1k", "w64/4k", "w96/1k", "w96/4k"]
    law = [80 * (rung.cfg.model.width or 0) ** -0.1 * (rung.images / 1000) ** -0.05 for rung in ladder.rungs]
    prepare(ladder, tmp_path / "prepared", law)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stumble").touch()
    first = scale(path)
    assert first.returncode == 75, first.stdout + first.stderr
    assert "rung 3 of 6, w64/1k: ended with code 75 before its last step; the same command continues it" in first.stdout
    second = scale(path)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("has all its") == 2
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["rung"]: row for row in found["rungs"]}
    assert rows["w64/4k"]["images"] == 125 * 32 and rows["w64/4k"]["loss"] == pytest.approx(0.3)
    assert rows["w64/4k"]["steady_hours"] == pytest.approx(125 * 0.36 / 3600)
    attempts = [json.loads(line) for line in (tmp_path / "out" / "attempts.jsonl").read_text().splitlines()]
    mine = [line for line in attempts if line["rung"] == "w64/1k" and line["what"] == "train" and "seconds" in line]
    assert len(mine) == 2  # the one that stumbled, and the one that went on
    assert rows["w64/1k"]["device_hours"] == pytest.approx(sum(line["seconds"] for line in mine) / 3600)
    assert 0 < rows["w64/1k"]["processor_hours"] < 0.01
    # the encoder's parameters grow a little slower than the square of its width: the exponent is near a half of the width's
    exponents = found["laws"]["parameters and images"]["exponents"]
    assert exponents["images"] == pytest.approx(0.05, abs=0.01) and exponents["parameters"] == pytest.approx(0.05, abs=0.01)
    expected = found["next"]["expected"]["parameters and images"]
    low, high = expected["one_run_95"]
    assert low < 80 * 128**-0.1 * 16**-0.05 < high and high - low < 3
    assert found["next"]["plan"]["steps"] == 500 and found["next"]["measured_to_planned"][0] > 0
    with (tmp_path / "out" / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 6 and float(table[3]["20-NN"]) == pytest.approx(100 - law[3])
    assert (tmp_path / "out" / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    attempts = [json.loads(line) for line in (tmp_path / "out" / "attempts.jsonl").read_text().splitlines()]
    assert [line["code"] for line in attempts if "code" in line] == [0, 0, 75, 0, 0, 0, 0]


def test_losses_that_are_not_finite_are_left_out(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture) -> None:
    """A point whose window holds skipped steps only has none; a rung that ends in them has to be trained again."""
    path = ladder_file(tmp_path, repository)
    ladder = read(path)
    prepare(ladder, tmp_path / "out", [60, 55, 59, 54, 58, 53])
    rung = ladder.rungs[0]
    for first, code in ((rung.steps, 0), (1, 2)):
        with SummaryWriter(str(tmp_path / "out" / rung.name), purge_step=first) as events:
            for step in range(first, rung.steps + 1):
                events.add_scalar("loss", float("nan"), step)
        assert cli.main(["scale", str(path), "--results"]) == code
    assert f"train {rung.name} again" in capsys.readouterr().err


def test_hours_of_an_attempt_without_an_end_are_not_invented(
    tmp_path: Path, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = ladder_file(tmp_path, repository)
    ladder = read(path)
    prepare(ladder, tmp_path / "out", [60, 55, 59, 54, 58, 53])
    begun = [{"rung": name, "what": "train"} for name in ("w32/1k", "w32/4k", "w32/4k")]
    ended = [begun[1] | {"seconds": seconds, "cpu_seconds": 30.0} for seconds in (36.0, 72.0)]
    (tmp_path / "out" / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*begun, *ended]))
    assert cli.main(["scale", str(path), "--results"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    hours = [row["device_hours"] for row in found["rungs"]]
    assert hours == [None, pytest.approx(0.03), None, None, None, None]
    assert "1 points for 2 parameters: no fit" in found["laws"]["device-hours"]["unfit"]
    assert re.search(r"w32/1k .* 40.00 +- ", caplog.text) and "processor-hours: 1 points" in caplog.text


def test_everything_wrong_with_a_ladder_is_told_at_once(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    text = LADDER.replace("warmup: 0.1", "warmup: 1.5\n  rungs: [w32/9k]").replace("images: 1000", "image: 1000")
    path = ladder_file(tmp_path, repository, text.replace("models:", "modells: {{}}\nmodels:").replace("w64:", "w 64:"))
    assert cli.main(["scale", str(path)]) == 2
    told = capsys.readouterr().err
    for line in (
        r"ladder.yaml:10: modells: unknown section; did you mean 'models'\?",
        r"ladder.yaml:7: ladder.warmup: expected a number from 0 to below 1, found 1.5",
        r"ladder.yaml:13: models.w 64: use letters, digits",
        r"ladder.yaml:16: budgets.1k.image: unknown key; did you mean 'images'\?",
        r"ladder.yaml:16: budgets.1k.images: missing",
        r"ladder.yaml:8: ladder.rungs: 'w32/9k' is not MODEL/BUDGET of this file",
    ):
        assert re.search(line, told), (line, told)


def test_wrong_configurations_of_rungs_are_placed_in_the_ladder(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    text = LADDER.replace("model.width=64", "model.widht=64").replace("images: 1000", "images: 20")
    path = ladder_file(tmp_path, repository, text)
    assert cli.main(["scale", str(path), "--plan"]) == 2
    told = capsys.readouterr().err
    assert re.search(r"ladder.yaml:11: override model.widht=64: model.widht: unknown key; did you mean 'width'\?", told)
    assert "ladder.yaml:14: images: 20 are fewer than one batch of 32" in told


def test_folders_of_other_runs_are_refused(tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture) -> None:
    path = ladder_file(tmp_path, repository)
    ladder = read(path)
    prepare(ladder, tmp_path / "out", [60.0] * 6)
    assert cli.main(["scale", str(path), "--set", "optimization.lr=0.5"]) == 2
    told = capsys.readouterr().err
    assert told.count("holds a run of another configuration: optimization.lr: 0.0007 -> 0.5") == 6
    assert cli.main(["scale", str(path), "--only", "w32/5k"]) == 2
    assert "no rung 'w32/5k' (there are: w32/1k," in capsys.readouterr().err


def test_the_evaluation_is_that_of_the_finished_run(tmp_path: Path, repository: Path) -> None:
    ladder = read(ladder_file(tmp_path, repository))
    assert ladder.evaluation
    rung = ladder.rungs[0]
    words = execute.evaluation_command(rung, ladder.evaluation)
    assert words[1:5] == ("-m", "ijepa_ds.cli", "eval", "all")
    assert words[5:] == (
        "--checkpoint", str(rung.folder), "--train", "somewhere/train", "--test", "somewhere/test",
        "--out", str(rung.folder / "eval"),
    )  # fmt: skip


def test_other_options_of_the_evaluation_are_another_protocol(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rungs that were scored with other options are scored anew, and no law is fitted through both."""
    caplog.set_level("INFO")
    path = ladder_file(tmp_path, repository)
    prepare(read(path), tmp_path / "out", [60, 55, 59, 54, 58, 53])
    path.write_text(path.read_text().replace("score: 20-NN", "score: 20-NN, options: [--temperature, '0.1', --device, cpu]"))
    assert cli.main(["scale", str(path), "--results"]) == 0
    assert "w32/1k: was evaluated with other settings (temperature)" in caplog.text
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert not any(row["scores"] for row in found["rungs"])
    run: list[str] = []
    monkeypatch.setattr(execute, "_attempt", lambda out, name, what, *_: run.append(f"{name} {what}") or 1)
    monkeypatch.setattr(execute.processes, "adopt_orphans", lambda: None)
    assert cli.main(["scale", str(path)]) == 1
    assert run == ["w32/1k eval"]


def test_options_that_the_evaluation_lacks_are_refused_before_training(
    tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture
) -> None:
    for options, wanted in (("[--lr, '0.1']", "--lr"), ("[--temprature, '1']", "unrecognized arguments: --temprature")):
        path = ladder_file(tmp_path, repository, LADDER.replace("20-NN", f"20-NN, options: {options}"))
        assert cli.main(["scale", str(path)]) == 2
        assert "ladder.yaml: eval.options: " in (told := capsys.readouterr().err) and wanted in told
        assert not (tmp_path / "out").exists()


def test_a_score_that_the_evaluation_does_not_give_is_named(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = ladder_file(tmp_path, repository, LADDER.replace("20-NN", "21-NN"))
    prepare(read(path), tmp_path / "out", [60.0] * 6)
    monkeypatch.setattr(execute, "_attempt", lambda *_: 0)
    monkeypatch.setattr(execute.processes, "adopt_orphans", lambda: None)
    assert cli.main(["scale", str(path)]) == 2
    told = capsys.readouterr().err
    assert "eval.score: " in told and "result.json has no '21-NN' (it has: 20-NN, linear)" in told


def noise(count: int, seed: int) -> np.ndarray:
    return np.exp(0.01 * np.random.default_rng(seed).standard_normal(count))


def test_a_law_is_found_again_with_an_honest_interval() -> None:
    x = np.geomspace(1e3, 1e6, 8)[:, None]
    inside = banded = 0
    for seed in range(20):
        law = power.fit(["n"], x, 7 * x[:, 0] ** -0.25 * noise(8, seed))
        low, high = law.interval(0)
        inside += low < 0.25 < high
        bands = law.predict(np.array([[1e7]]))
        banded += bool(bands.low[0] < 7 * 1e7**-0.25 < bands.high[0])
        assert bands.low_run[0] < bands.low[0] and bands.high[0] < bands.high_run[0]
    assert inside >= 16 and banded >= 16  # of 20, where 19 are expected


def test_an_irreducible_error_is_told_only_where_it_shows() -> None:
    x = np.geomspace(1, 1e6, 13)[:, None]
    bent = power.fit(["n"], x, (5 + 40 * x[:, 0] ** -0.5) * noise(13, 1))
    assert bent.offset == pytest.approx(5, abs=0.3) and bent.offset_range and bent.offset_range[0] > 4
    assert bent.exponents[0] == pytest.approx(0.5, abs=0.03) and not bent.notes()
    bands = bent.predict(np.array([[1e9]]))
    assert bands.value[0] == pytest.approx(5, abs=0.3) and 1 < bands.high[0] / bands.low[0] < 1.15
    short = power.fit(["n"], np.array([[1.0], [2], [4], [8], [16]]), np.array([50, 47, 45.0, 42, 41]))
    assert short.offset == 0 and any("irreducible error is not identifiable" in note for note in short.notes())
    flat = power.fit(["n"], x, 40 * noise(13, 2))
    assert any("exponent of n may be 0" in note for note in flat.notes())


@pytest.mark.parametrize("irreducible", [0, 5, 20])
def test_bands_hold_the_truth_beyond_the_points(irreducible: int) -> None:
    """30 ladders of 6 points over a factor of 30 with 2 % noise, extrapolated 10 times; docs/LOG.md has all of coverage.py."""
    x, far = np.geomspace(1, 30, 6)[:, None], np.array([[300.0]])
    inside = narrow = 0
    for seed in range(30):
        truth = np.random.default_rng(seed).standard_normal(6)
        law = power.fit(["n"], x, (irreducible + 40 * x[:, 0] ** -0.3) * np.exp(0.02 * truth))
        bands, alone = law.predict(far), law.itself().predict(far)
        exact = irreducible + 40 * 300**-0.3
        inside += bool(bands.low[0] <= exact <= bands.high[0])
        narrow += bool(abs(np.log(alone[0][0] / exact)) <= alone[1][0])
        assert law.reach() < 1e6
    assert inside >= 26, inside  # 95 % of 30 is 28.5
    assert not irreducible or narrow < 26  # the band of one E alone is too narrow: what the envelope is for


def test_points_that_cannot_tell_two_variables_apart_are_not_fitted() -> None:
    x = np.geomspace(1, 100, 6)
    with pytest.raises(power.UnfitError, match="n, d do not vary independently"):
        power.fit(["n", "d"], np.column_stack([x, x**2]), 10 / x)
    with pytest.raises(power.UnfitError, match="2 points for 2 parameters: no fit; 3 are needed at least"):
        power.fit(["n"], np.array([[1.0], [2.0]]), np.array([3.0, 2.0]))
    for error in (0.0, -5.0):
        with pytest.raises(power.UnfitError, match="a score of 100 or more"):
            power.fit(["n"], x[:, None], np.append(10 / x[1:], error))
