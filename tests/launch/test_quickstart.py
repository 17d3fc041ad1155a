"""launch/quickstart.sh with stand-ins for what it starts: its order, running it again, and ending all it started."""

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijepa_ds import config
from tests.processes import is_alive, take_all_signals
from tests.waiting import limit, wait_until

# Like the real one, the runner dies of SIGTERM and forwards nothing; its child stands for the ranks.
DEEPSPEED = """#!/bin/bash
echo "deepspeed $*" >>"$CALLS"
for argument in "$@"; do case $argument in run.dir=*) run=${argument#run.dir=} ;; esac; done
mkdir -p "$run"
[ -z "$FAILS" ] || exit "$FAILS"
[ -z "$HANGS" ] || { sleep 300 & echo $! >"$run/rank.partial"; mv "$run/rank.partial" "$run/rank"; wait; }
[ -n "$FORGETS" ] || echo '{}' >"$run/completed.json"
"""
IJEPA_DS = """#!/bin/bash
echo "ijepa-ds $*" >>"$CALLS"
[ "$1 $2" != "data objects" ] || { mkdir -p "$4"; echo '{}' >"$4/scenes.json"; }
"""
PYTHON = """#!/bin/bash
echo 29511
"""


def write_script(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


class Checkout:
    """launch/ in a folder with blanks, an install.sh that does nothing, and a VENV of stand-ins."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root, self.calls, self.work = root, root / "calls", root / "some where"
        self.repository = root / "a checkout"
        self.started: list[subprocess.Popen[str]] = []
        shutil.copytree(repository / "launch", self.repository / "launch")
        (self.repository / "launch" / "install.sh").write_text('echo install >>"$CALLS"\n')
        (root / "venv" / "bin").mkdir(parents=True)
        for name, text in ("deepspeed", DEEPSPEED), ("ijepa-ds", IJEPA_DS), ("python", PYTHON):
            write_script(root / "venv" / "bin" / name, text)

    def start(self, **variables: str) -> subprocess.Popen[str]:
        settings = {
            "VENV": "venv",
            "QUICKSTART_DIR": self.work.name,
            "CALLS": str(self.calls),
            "CUDA_VISIBLE_DEVICES": "",
            "FAILS": "",
            "HANGS": "",
            "FORGETS": "",
        }
        process = subprocess.Popen(
            ["bash", str(self.repository / "launch" / "quickstart.sh")],
            cwd=self.root,
            env=os.environ | settings | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=take_all_signals,
        )
        self.started.append(process)
        return process

    def run(self, **variables: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a whole run."""
        process = self.start(**variables)
        output, errors = process.communicate(timeout=limit(300))
        return process.returncode, output, errors

    def called(self) -> list[str]:
        lines = self.calls.read_text().splitlines()
        self.calls.unlink()
        return lines


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Iterator[Checkout]:
    made = Checkout(tmp_path, repository)
    yield made
    rank = made.work / "run" / "rank"
    for process in made.started:
        process.kill()
        if rank.exists() and is_alive(int(rank.read_text())):  # else it keeps the pipe open
            os.kill(int(rank.read_text()), signal.SIGKILL)
        process.communicate()


def wait_for_rank(checkout: Checkout) -> int:
    file = checkout.work / "run" / "rank"
    wait_until(file.exists, 100, "the stand-in for the ranks")
    return int(file.read_text())


def test_from_nothing_to_a_picture_and_then_again(checkout: Checkout) -> None:
    code, output, errors = checkout.run()
    assert code == 0, errors
    work, objects = checkout.work, checkout.work / "objects"
    install, train_set, test_set, training, scores, summary = checkout.called()
    assert install == "install"
    assert train_set == f"ijepa-ds data objects --out {objects}/train --num 8000 --size 64 --seed 0 --split train"
    assert test_set == f"ijepa-ds data objects --out {objects}/test --num 1500 --size 64 --seed 1 --split test"
    assert "--num_gpus 2 --module ijepa_ds.train" in training
    assert f"--config {checkout.repository}/configs/quickstart.yaml" in training
    assert training.endswith(f"data.source={objects}/train run.dir={work}/run")
    assert scores == (
        f"ijepa-ds eval all --checkpoint {work}/run --train {objects}/train --test {objects}/test "
        f"--baseline untrained --out {work}/eval"
    )
    title = "Quickstart: a tiny I-JEPA on rendered objects"
    assert summary == f"ijepa-ds summary --run {work}/run --eval {work}/eval --title {title} --out {work}/summary.png"
    assert output.count(": done in") == 6
    assert f"{work}/summary.png" in output.rpartition("Finished")[2]

    code, output, errors = checkout.run()
    assert code == 0, errors
    assert [line.split()[:2] for line in checkout.called()] == [["install"], ["ijepa-ds", "eval"], ["ijepa-ds", "summary"]]
    assert "not trained again" in output


def test_the_trainer_chooses_the_precision(checkout: Checkout, repository: Path) -> None:
    code, _, errors = checkout.run()
    assert code == 0, errors
    training = next(line for line in checkout.called() if line.startswith("deepspeed"))
    assert "model.precision" not in training
    assert config.load(repository / "configs" / "quickstart.yaml").model.precision == "auto"


def test_a_failure_gives_its_exit_code_and_the_next_call_trains(checkout: Checkout) -> None:
    code, _, errors = checkout.run(FAILS="7")
    assert code == 7
    assert "'training with 2 ranks on the CPU' failed with exit code 7" in errors
    assert checkout.called()[-1].startswith("deepspeed")
    assert checkout.run()[0] == 0
    assert [line.split()[0] for line in checkout.called()] == ["install", "deepspeed", "ijepa-ds", "ijepa-ds"]


def test_a_launcher_that_returns_0_without_the_marker_has_failed(checkout: Checkout) -> None:
    code, _, errors = checkout.run(FORGETS="1")
    assert code == 1
    assert "completed.json" in errors
    assert checkout.called()[-1].startswith("deepspeed")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_ends_runner_and_ranks(number: signal.Signals, code: int, checkout: Checkout) -> None:
    process = checkout.start(HANGS="1")
    rank = wait_for_rank(checkout)
    assert is_alive(rank)
    process.send_signal(number)
    _, errors = process.communicate(timeout=limit(300))
    assert process.returncode == code
    assert "stopping" in errors
    assert not is_alive(rank)


def test_ranks_do_not_outlive_a_runner_that_was_killed(checkout: Checkout) -> None:
    process = checkout.start(HANGS="1")
    rank = wait_for_rank(checkout)
    runner = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(runner, signal.SIGKILL)
    _, errors = process.communicate(timeout=limit(300))
    assert process.returncode == 137
    assert "failed with exit code 137" in errors
    assert not is_alive(rank)
