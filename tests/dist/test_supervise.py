"""`ijepa-ds supervise` over the real launcher and real ranks: everything that ends a run ends this one, once."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.checkpoint.reader import CheckpointReader
from tests.dist.launched import TINY, Run, environment
from tests.dist.pool import free_port
from tests.processes import die_with_parent, processes_of
from tests.waiting import limit, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow]
STEPS, LATE = 40, 25
# A run does not end before it is disturbed: from step LATE on, a step takes 2 s until the file `hurry` is there.
PACED = f"""import pathlib, sys, time
from ijepa_ds import train
from ijepa_ds.training import reporter
after = reporter.Reporter.after_step
def paced(self, step, *rest):
    time.sleep(2.0 if step >= {LATE} and not pathlib.Path("hurry").exists() else 0.02)
    return after(self, step, *rest)
reporter.Reporter.after_step = paced
sys.exit(train.main())
"""
SETTINGS = (f"optimization.steps={STEPS}", "run.checkpoint_every=5")


@pytest.fixture
def place(place: Path) -> Path:
    (place / "paced.py").write_text(PACED)
    return place


class Supervised:
    """A supervised run of two ranks in `place`."""

    def __init__(self, place: Path) -> None:
        self.place, self.run = place, place / "supervised"
        self._log = place / "log.txt"
        command = [sys.executable, "-m", "ijepa_ds.cli", "supervise", "--run", "supervised", "--backoff", "0.1", "--"]
        command += [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
        command += ["--module", "paced", "--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY]
        with self._log.open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "run.dir=supervised", *SETTINGS],
                cwd=place,
                env=environment(place),
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def end(self) -> None:
        """Kill what is left after a failed test, so that no later test sees it."""
        for pid in processes_of(self.place):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def log(self) -> str:
        return self._log.read_text()

    def wait_for_checkpoint(self, step: int) -> None:
        """Of this step or a later one."""
        wait_until(lambda: max(list_steps(self.run), default=0) >= step, 400, self.log)

    def rank(self, rank: int) -> int:
        """Process number of a rank."""
        for pid in processes_of(self.place):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            except OSError:  # it has just ended
                continue
            if f"--local_rank={rank}" in words and "deepspeed.launcher.launch" not in words:
                return pid
        raise AssertionError(f"no rank {rank} in {self.place}")


@pytest.fixture
def run(place: Path) -> Iterator[Supervised]:
    started = Supervised(place)
    yield started
    started.end()


def assert_finishes_as_if_undisturbed(place: Path) -> None:
    """The same command, without launcher and supervisor, completes the run with the weights of an undisturbed one."""
    for run_dir in ("supervised", "straight"):
        run = Run(place, f"run.dir={run_dir}", *SETTINGS)
        assert run.wait() == [0, 0], run.output
    one, other = (CheckpointReader(place / name / "checkpoints" / f"step_{STEPS:08d}") for name in ("straight", "supervised"))
    for kind in ("master", "exp_avg", "exp_avg_sq", "ema"):
        assert one.names(kind) == other.names(kind)
        assert all((one.read(kind, name) == other.read(kind, name)).all() for name in one.names(kind)), kind


def test_after_a_killed_rank_and_a_stop_a_run_ends_in_the_weights_of_one_never_disturbed(place: Path, run: Supervised) -> None:
    """Bit for bit; and after the stop nothing is left that works there."""
    run.wait_for_checkpoint(10)
    os.kill(run.rank(1), signal.SIGKILL)
    notes = run.run / "restarts.jsonl"
    wait_until(lambda: notes.exists() and notes.read_text().endswith("\n"), 200, run.log)
    (line,) = (json.loads(text) for text in notes.read_text().splitlines())
    assert line["event"] == "restart" and line["step"] >= 10, line
    # DeepSpeed's launcher looks at its ranks once a second and reports the first that failed: the killed one, or rank 0,
    # which notices the loss at once.
    assert "killed by SIGKILL" in line["reason"] or "code 70: a rank died" in line["reason"], line
    run.wait_for_checkpoint(line["step"] + 5)
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(limit(200)) == 75 and not processes_of(place), run.log()
    assert "stopped by SIGTERM after step" in run.log()
    assert_finishes_as_if_undisturbed(place)


@pytest.mark.nightly
def test_a_killed_supervisor_takes_its_run_with_it_and_the_run_continues(place: Path, run: Supervised) -> None:
    run.wait_for_checkpoint(10)
    run.process.kill()
    run.process.wait()
    wait_until(lambda: not processes_of(place), 200, run.log)
    assert "stopped by SIGHUP" in run.log()
    assert_finishes_as_if_undisturbed(place)
