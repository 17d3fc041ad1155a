"""launch/slurm.sbatch in a real SLURM of two nodes: signals, time limits, preemptions, and what is queued again."""

import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from tests.dist.launched import REPOSITORY, TINY, read_completed
from tests.dist.slurm import Slurm, why_not
from tests.waiting import limit, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.nightly]
FILES = ["--config", "run.yaml", "--deepspeed_config", "zero3.json"]
LONG = ["optimization.steps=400", "run.checkpoint_every=20"]
LIMITED = ("--nodes=2", "--ntasks-per-node=1", "--time=30", "--signal=B:USR1@20")
ENDLESS = ["optimization.steps=100000", "run.checkpoint_every=20"]
# Every flush to disk of a rank takes a minute while there is a file `slow` beside its run.
SLOW_SAVES = """import os, sys, time
if "ijepa_ds.train" in " ".join(sys.orig_argv):
    sync = os.fsync
    def fsync(file):
        path = os.readlink(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}")
        if "checkpoints" in path and os.path.exists("slow"):
            open("saving", "w").close()
            time.sleep(60)
        sync(file)
    os.fsync = fsync
"""


@pytest.fixture(scope="module")
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


class Job:
    """A submitted run, cancelled at the end."""

    def __init__(self, slurm: Slurm, place: Path, *words: str, options: tuple[str, ...] = (), export: str = "ALL,") -> None:
        self._slurm, self._place, self.out = slurm, place, place / "out"
        settings = {"IJEPA_DS": REPOSITORY, "VENV": Path(sys.executable).parents[1], "PYTHONPATH": f"{place}:{REPOSITORY}"}
        settings |= {"DS_ACCELERATOR": "cpu"}
        words_of = [f"{name}={value}" for name, value in settings.items()]
        given = ["--parsable", "--output=log.txt", f"--export={export}{','.join(words_of)}", *options]
        script = str(REPOSITORY / "launch" / "slurm.sbatch")
        self.id = slurm.ask("sbatch", *given, script, "out", *FILES, *TINY, *words, check=True, cwd=place).strip()

    @property
    def log(self) -> str:
        path = self._place / "log.txt"
        return path.read_text() if path.exists() else ""

    @property
    def facts(self) -> dict[str, str]:
        return self._slurm.state(self.id)

    @property
    def step(self) -> int:
        return max(list_steps(self.out), default=0)

    def wait(self, reached: Callable[[], object], what: str, seconds: float = 400) -> None:
        """Until `reached`. A job that was queued again may start after two minutes; here it starts after some seconds.

        At once would be too soon: the nodes still end the attempt before.
        """
        end, asked, facts = time.monotonic() + limit(seconds), time.monotonic(), self.facts
        while not reached():
            assert time.monotonic() < end, f"waited for {what}; {facts}\n{self.log}"
            time.sleep(0.05)
            if time.monotonic() < asked + 2:
                continue
            asked, before, facts = time.monotonic(), facts, self.facts or facts  # SLURM forgets a job after 5 minutes
            if before.get("JobState") == facts.get("JobState") == "PENDING":
                self._slurm.ask("scontrol", "update", f"jobid={self.id}", "StartTime=now")

    def wait_for_state(self, state: str, seconds: float = 400) -> None:
        self.wait(lambda: self.facts.get("JobState") == state, state, seconds)

    def wait_for_checkpoint(self) -> None:
        """A newer one than now."""
        before = self.step
        self.wait(lambda: self.step > before, "a checkpoint")

    def wait_for_restart(self, number: int) -> None:
        self.wait(lambda: self.facts.get("Restarts") == str(number), f"restart {number}")

    def limit_time(self) -> None:
        """Its time ends in 40 to 100 s; SLURM's limits are whole minutes."""
        hours, minutes, seconds = map(int, self.facts["RunTime"].split(":"))
        minutes = (3600 * hours + 60 * minutes + seconds + 100) // 60
        self._slurm.ask("scontrol", "update", f"jobid={self.id}", f"TimeLimit={minutes}", check=True)

    def free_time(self) -> None:
        """It may run as long as it wants."""
        self._slurm.ask("scontrol", "update", f"jobid={self.id}", "TimeLimit=UNLIMITED", check=True)

    def ranks(self) -> list[int]:
        """Process ids of its ranks."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes()
                here = os.readlink(folder / "cwd") == str(self._place)
            except OSError:
                continue
            if here and words.startswith(b"python") and b"ijepa_ds.train" in words:
                found.append(int(folder.name))
        return found


@pytest.fixture
def submit(slurm: Slurm, place: Path) -> Iterator[Callable[..., Job]]:
    jobs = []

    def start(*words: str, options: tuple[str, ...] = ("--nodes=2", "--ntasks-per-node=1"), export: str = "ALL,") -> Job:
        jobs.append(Job(slurm, place, *words, options=options, export=export))
        return jobs[-1]

    yield start
    for job in jobs:
        slurm.ask("scancel", job.id)
    wait_until(lambda: not slurm.ask("squeue", "--noheader").strip(), 120, "an empty queue", pause=0.5)


def test_signals_and_a_preemption_save_and_the_job_completes(slurm: Slurm, submit: Callable[..., Job]) -> None:
    """To the script, to all, to the ranks alone; `scontrol requeue` is what a preemption does."""
    job = submit(*LONG)
    ways = [("--batch", "--signal=USR1"), ("--full", "--signal=USR1"), ("--signal=USR1",)]
    commands = [["scancel", *way, job.id] for way in ways] + [["scontrol", "requeue", job.id]]
    for number, command in enumerate(commands, start=1):
        job.wait_for_checkpoint()
        slurm.ask(*command, check=True)
        job.wait_for_restart(number)
        saved = "saved: the same command continues. Exit code 75"
        job.wait(lambda saved=saved, number=number: job.log.count(saved) == number, "a save")
    job.wait_for_state("COMPLETED")
    assert read_completed(job.out)["steps"] == 400 and job.log.count("continuing") >= 3, job.log
    assert job.facts["ExitCode"] == "0:0"


@pytest.mark.parametrize("way", [(), ("--full",), ("--batch",)])
def test_scancel_ends_the_job(way: tuple[str, ...], slurm: Slurm, submit: Callable[..., Job]) -> None:
    """It saves within KillWait. `--batch` alone signals the script: SLURM then reports the script's exit code."""
    job = submit(*ENDLESS)
    job.wait_for_checkpoint()
    slurm.ask("scancel", *way, job.id, check=True)
    job.wait_for_state("FAILED" if way == ("--batch",) else "CANCELLED")
    assert "Exit code 75" in job.log and job.facts["Restarts"] == "0", job.log
    time.sleep(3)
    assert job.facts["JobState"] != "PENDING" and "queued again from" not in job.log


def test_the_signal_before_the_time_limit_saves_and_queues_again(submit: Callable[..., Job]) -> None:
    job = submit(*LONG, "optimization.steps=2500", options=LIMITED)
    job.wait_for_checkpoint()
    job.limit_time()
    job.wait_for_restart(1)
    assert "signal USR1, stopped by SIGUSR1" in job.log and "Exit code 75" in job.log, job.log
    job.free_time()
    job.wait(lambda: "continuing" in job.log, "the second start")
    job.wait_for_state("COMPLETED", 1500)  # so many steps because the limit must come before the last, on a fast machine too
    assert read_completed(job.out)["steps"] == 2500 and job.facts["Restarts"] == "1"


def test_a_time_limit_before_the_end_of_a_slow_save(place: Path, submit: Callable[..., Job]) -> None:
    """A flush takes a minute, the limit comes 20 s after the signal. The job goes on from the checkpoint before."""
    (place / "sitecustomize.py").write_text(SLOW_SAVES)
    job = submit(*ENDLESS, options=LIMITED)
    job.wait_for_checkpoint()
    (place / "slow").touch()
    job.wait((place / "saving").exists, "a slow save")
    kept = job.step
    job.limit_time()
    job.wait_for_restart(1)
    assert "DUE TO TIME LIMIT" in job.log and f"queued again from the checkpoint of step {kept}" in job.log, job.log
    (place / "slow").unlink()
    job.free_time()
    job.wait(lambda: "continuing" in job.log, "the second start")
    job.wait_for_checkpoint()
    assert job.step > kept


@pytest.mark.parametrize("partition", ["cancel", "grace"])
def test_a_preemption_cancels_or_queues_again_as_the_partition_says(
    partition: str, slurm: Slurm, submit: Callable[..., Job]
) -> None:
    nodes = ("--nodes=2", "--ntasks-per-node=1", "--exclusive")
    job = submit(*ENDLESS, options=(f"--partition={partition}", *nodes))
    job.wait_for_checkpoint()
    urgent = slurm.ask("sbatch", "--parsable", "--partition=urgent", *nodes, "--output=/dev/null", "--wrap=sleep 1").strip()
    if partition == "grace":
        job.wait(lambda: "waiting for the preemption" in job.log, "ranks that have saved")
        job.wait_for_restart(1)
    slurm.wait_for_state(urgent, "COMPLETED", 200)
    job.wait_for_state("RUNNING" if partition == "grace" else "PREEMPTED")
    assert job.facts["Restarts"] == ("1" if partition == "grace" else "0") and "Exit code 75" in job.log, job.log


def test_exported_variables_options_and_cores_reach_the_ranks(slurm: Slurm, submit: Callable[..., Job]) -> None:
    """`--export` without ALL; 2 cores a task, bound."""
    options = ("--nodes=1", "--ntasks=1", "--cpus-per-task=2")
    job = submit(*ENDLESS, options=options, export="IJEPA_DS_SRUN_OPTIONS=--cpu-bind=cores,MARK=7,")
    job.wait_for_checkpoint()
    (rank,) = job.ranks()
    given = Path(f"/proc/{rank}/environ").read_bytes().split(b"\0")
    assert b"MARK=7" in given and b"SLURM_CPUS_PER_TASK=2" in given
    assert len(os.sched_getaffinity(rank)) == 2
    assert "OMP_NUM_THREADS=2 (chosen here" in job.log, job.log


def test_a_dead_rank_is_replaced_until_attempts_are_fruitless(slurm: Slurm, submit: Callable[..., Job]) -> None:
    job = submit(*ENDLESS, "run.checkpoint_every=50000")
    for number in range(3):
        starts = number + 1
        job.wait(lambda starts=starts: len(job.ranks()) == 2 and job.log.count("  run directory ") == starts, "two ranks")
        os.kill(job.ranks()[0], signal.SIGKILL)
        if number < 2:
            job.wait_for_restart(number + 1)
            job.wait(lambda: not job.ranks(), "no ranks")
    job.wait_for_state("FAILED")
    assert "3 attempts in a row saved no newer checkpoint" in job.log, job.log


def test_the_doctor_reaches_the_nodes_of_an_allocation_through_srun(slurm: Slurm, place: Path) -> None:
    command = [sys.executable, "-m", "ijepa_ds.cli", "doctor", "--srun", "--json", "--master_addr", "127.0.0.1", *FILES, *TINY]
    script = place / "doctor.sh"
    given = f"export PYTHONPATH={REPOSITORY} DS_ACCELERATOR=cpu OMP_NUM_THREADS=1"
    script.write_text(f"#!/bin/bash\n{given}\nexec {shlex.join(map(str, command))} > told.json\n")
    options = ["--parsable", "--nodes=2", "--ntasks-per-node=1", "--output=doctor.txt"]
    job = slurm.ask("sbatch", *options, str(script), check=True, cwd=place).strip()
    ended = ("COMPLETED", "FAILED")
    wait_until(lambda: slurm.state(job)["JobState"] in ended, 300, lambda: str(slurm.state(job)), pause=0.5)
    rows = json.loads((place / "told.json").read_text())["rows"]
    reached = {row["host"]: row["found"] for row in rows if row["check"] == "reach"}
    assert reached.keys() == {"ij-a", "ij-b"} and all("by srun" in found for found in reached.values()), rows
    assert any(row["check"] == "allocation" and row["found"] == "2 hosts, 2 ranks" for row in rows)
