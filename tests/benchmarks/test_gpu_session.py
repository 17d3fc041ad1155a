"""`python -m benchmarks.gpu_session` with tiny shapes on a CPU; its bounds, limits and wheels."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_session
from benchmarks.wheels import join_wheels
from tests.dist import launched


def session(repository: Path, out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """The command's end, and the lines of its results."""
    command = [sys.executable, "-m", "benchmarks.gpu_session", "--out", str(out), *options]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    lines = (out / "results.jsonl").read_text().splitlines() if (out / "results.jsonl").exists() else []
    return done, [json.loads(line) for line in lines]


@pytest.mark.dist
def test_tiny_shapes_on_a_cpu(repository: Path, tmp_path: Path) -> None:
    images = launched.prepare(tmp_path / "place", 8) / "images"
    only = ["--only", "step-2-compiled", "tests-first", "plain", "train", "graph", "nccl", "narrow"]
    options = ["--tiny", "--minutes", "90", "--steps", "2", "--images", str(images), *only]
    done, results = session(repository, tmp_path / "out", *options)
    by_name = {one["part"]: one for one in results}
    assert done.returncode == 0, done.stdout + "".join(path.read_text()[-2000:] for path in (tmp_path / "out").glob("*.log"))
    order = ["step-2-compiled-2", "tests-first", "plain", "step-2-compiled-4", "narrow-2-compiled-2", "train", "graph", "nccl"]
    assert [one["part"] for one in results] == order
    for name in ("step-2-compiled-2", "plain", "step-2-compiled-4", "narrow-2-compiled-2", "train"):
        assert by_name[name]["state"] == "ok" and by_name[name]["images_per_second"] > 0 and by_name[name]["peak_memory"] > 0
    assert 0 < by_name["step-2-compiled-2"]["matmul_share"] < 1 and 0 <= by_name["train"]["data_wait"] < 1
    assert by_name["graph"]["target_pass"] > 0 and "target_graph" not in by_name["graph"]
    assert by_name["tests-first"]["state"] == "skipped: no GPU" and by_name["nccl"]["state"] == "skipped: 0 GPUs"
    assert "nothing is claimed" in done.stdout and "images/s" in done.stdout


def test_a_part_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    found = gpu_session.run_part(gpu_session.Part("slow", ["-c", child], 600), tmp_path, 1.0)
    assert found["state"] == "stopped after 1 s"
    found = gpu_session.run_part(gpu_session.Part("broken", ["-c", "raise SystemExit(3)"], 600), tmp_path, 60.0)
    assert found["state"] == "failed (3)"


def test_without_time_nothing_is_started(repository: Path, tmp_path: Path) -> None:
    done, results = session(repository, tmp_path, "--tiny", "--minutes", "0", "--only", "plain", "train")
    assert done.returncode == 0
    assert [one["state"] for one in results] == ["skipped: no time left", "skipped: --images names no folder of JPEGs"]


def test_goals_that_are_missed_are_named() -> None:
    good = {"state": "ok", "step": 0.2, "images_per_second": 640.0, "matmul_share": 0.56}
    rows = [
        good | {"part": "step-2-compiled-128"},
        good | {"part": "step-3-compiled-128", "step": 0.22},
        good | {"part": "step-2-compiled-256"},
        {"part": "plain", "state": "ok", "images_per_second": 300.0},
        {"part": "train", "state": "ok", "data_wait": 0.01},
    ]
    assert list(gpu_session.out_of_bounds(rows)) == []
    bad = [
        rows[0] | {"matmul_share": 0.49, "images_per_second": 500.0},
        rows[1] | {"step": 0.23},
        rows[2] | {"matmul_share": 0.54},
        rows[3],
        rows[4] | {"data_wait": 0.03},
    ]
    missed = list(gpu_session.out_of_bounds(bad))
    assert [line.partition(":")[0] for line in missed] == [
        "step-2-compiled-128",
        "step-2-compiled-256",
        "step-3-compiled-128",
        "train",
        "step-2-compiled-128",
    ]
    assert list(gpu_session.out_of_bounds([row | {"state": "failed (1)"} for row in bad])) == []


def test_wheels_are_joined_from_their_parts(tmp_path: Path) -> None:
    source = tmp_path / "wheels"
    source.mkdir()
    for name, text in (("a.whl.part-00", "one"), ("a.whl.part-01", "two"), ("b.whl", "whole")):
        (source / name).write_text(text)
    joined = join_wheels(source, tmp_path / "joined")
    assert {path.name: path.read_text() for path in joined.iterdir()} == {"a.whl": "onetwo", "b.whl": "whole"}
    (source / "a.whl.part-00").unlink()
    with pytest.raises(ValueError, match=r"a\.whl has the parts \[1\]; expected 0 to 1"):
        join_wheels(source, tmp_path / "joined")
    with pytest.raises(ValueError, match="expected files"):
        join_wheels(tmp_path / "joined" / "..", tmp_path / "more")
