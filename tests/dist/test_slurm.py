"""launch/slurm.sbatch in a real SLURM: a job of two tasks is signalled, preempted, and completes by itself."""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from tests.dist.launched import REPOSITORY, TINY, read_completed
from tests.dist.slurm import Slurm, why_not
from tests.waiting import limit

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.nightly]
FILES = ["--config", "run.yaml", "--deepspeed_config", "zero3.json"]


@pytest.fixture
def slurm() -> Iterator[Slurm]:
    why = why_not()
    if why:
        pytest.skip(f"NO SLURM HERE ({why}): launch/slurm.sbatch did not run in one")
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Slurm(Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()


def start_and_wait(slurm: Slurm, job: str, reached: Callable[[], bool], log: Path) -> None:
    """Until `reached`; a job that was queued again waits two minutes unless told otherwise, sometimes more than once."""
    end, asked = time.monotonic() + limit(600), time.monotonic()
    while not reached():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
        if time.monotonic() > asked + 2 and slurm.state(job)["JobState"] == "PENDING":
            slurm.ask("scontrol", "update", f"jobid={job}", "StartTime=now")
            asked = time.monotonic()


def test_a_job_is_signalled_preempted_and_completes(slurm: Slurm, place: Path) -> None:
    """The signal is the one that comes before the time limit; `scontrol requeue` is what a preemption does."""
    settings = {"IJEPA_DS": REPOSITORY, "VENV": Path(sys.executable).parents[1], "PYTHONPATH": REPOSITORY}
    settings |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    exported = ",".join(["ALL", *(f"{name}={value}" for name, value in settings.items())])
    options = ["--parsable", "--nodes=1", "--ntasks-per-node=2", "--output=log.txt", f"--export={exported}"]
    script = str(REPOSITORY / "launch" / "slurm.sbatch")
    arguments = [*FILES, *TINY, "optimization.steps=400", "run.checkpoint_every=20"]
    job = slurm.ask("sbatch", *options, script, "out", *arguments, check=True, cwd=place).strip()
    log, out = place / "log.txt", place / "out"
    for number, interruption in enumerate((["scancel", "--signal=USR1", job], ["scontrol", "requeue", job]), start=1):
        before = max(list_steps(out), default=0)
        start_and_wait(slurm, job, lambda before=before: max(list_steps(out), default=0) > before, log)
        slurm.ask(*interruption, check=True)
        slurm.wait_for_state(job, "PENDING", 300)
        assert slurm.state(job)["Restarts"] == str(number)
        text = log.read_text()
        assert text.count("saved: the same command continues. Exit code 75") == number, text
    start_and_wait(slurm, job, lambda: slurm.state(job)["JobState"] == "COMPLETED", log)
    text = log.read_text()
    assert read_completed(out)["steps"] == 400 and text.count("continuing") >= 2, text
    assert slurm.state(job)["ExitCode"] == "0:0"
