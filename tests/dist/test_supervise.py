"""`ijepa-ds supervise` over the real launcher and real ranks: everything that ends a run ends this one, once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.checkpoint.reader import CheckpointReader
from tests.dist.launched import TINY, Run, environment, prepare
from tests.dist.pool import free_port
from tests.dist.test_faults import processes_of

pytestmark = [pytest.mark.dist, pytest.mark.slow]
STEPS = 60
SLOW = "import sys, time\nfrom ijepa_ds import train\n"
SLOW += "from ijepa_ds.training import reporter\nafter = reporter.Reporter.after_step\n"
SLOW += "def slow(*a, **n):\n    time.sleep(0.1)\n    return after(*a, **n)\nreporter.Reporter.after_step = slow\n"
SLOW += "sys.exit(train.main())\n"  # a step takes at least as long as it takes to send a signal


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    prepare(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    yield tmp_path
    for process in processes_of(tmp_path):
        os.kill(process, signal.SIGKILL)


def start(place: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ijepa_ds.cli", "supervise", "--run", "supervised", "--backoff", "0.1", "--"]
    command += [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command += ["--module", "slow", "--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "run.dir=supervised", f"optimization.steps={STEPS}", "run.checkpoint_every=5"],
            cwd=place,
            env=environment(place),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def wait_until(condition: Callable[[], object], log: Path, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def rank_of(place: Path, rank: int) -> int:
    """Process number of a rank."""
    for pid in processes_of(place):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if f"--local_rank={rank}" in words and "deepspeed.launcher.launch" not in words:
            return pid
    raise AssertionError(f"no rank {rank} in {place}")


def test_a_rank_killed_a_supervisor_killed_and_a_stop_end_in_the_weights_of_a_run_never_disturbed(place: Path) -> None:
    """Bit for bit; and after each of them nothing is left that works there."""
    run = place / "supervised"

    def reached(step: int) -> bool:
        return max(list_steps(run), default=0) >= step

    first = start(place, place / "first.txt")
    wait_until(lambda: reached(10), place / "first.txt")
    os.kill(rank_of(place, 1), signal.SIGKILL)
    wait_until((run / "restarts.jsonl").exists, place / "first.txt", 60)
    wait_until(lambda: reached(20), place / "first.txt")
    first.kill()
    wait_until(lambda: not processes_of(place), place / "first.txt", 30)
    first.wait()
    (line,) = (json.loads(text) for text in (run / "restarts.jsonl").read_text().splitlines())
    assert line["event"] == "restart" and 10 <= line["step"] < 20 and "SIGKILL" in line["reason"], line
    assert "stopped by SIGHUP" in (place / "first.txt").read_text()

    saved = max(list_steps(run))
    second = start(place, place / "second.txt")
    wait_until(lambda: reached(saved + 5), place / "second.txt")
    second.send_signal(signal.SIGTERM)
    assert second.wait(timeout=60) == 75 and not processes_of(place), (place / "second.txt").read_text()
    assert "stopped by SIGTERM after step" in (place / "second.txt").read_text()

    assert start(place, place / "third.txt").wait(timeout=120) == 0, (place / "third.txt").read_text()
    undisturbed = Run(place, "run.dir=straight", f"optimization.steps={STEPS}", "run.checkpoint_every=5")
    assert undisturbed.wait() == [0, 0], undisturbed.output
    one, other = (CheckpointReader(place / name / "checkpoints" / f"step_{STEPS:08d}") for name in ("straight", "supervised"))
    for kind in ("master", "exp_avg", "exp_avg_sq", "ema"):
        assert one.names(kind) == other.names(kind)
        assert all((one.read(kind, name) == other.read(kind, name)).all() for name in one.names(kind)), kind
