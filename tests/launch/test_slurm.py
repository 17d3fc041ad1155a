"""launch/slurm.sbatch and launch/deepspeed_env.sh, with stand-ins for srun, scontrol and the trainer."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijepa_ds.cluster.hosts import parse_environment
from tests.waiting import limit, wait_until

SRUN = """#!/bin/bash
while [ "$1" != bash ]; do echo "$1" >> options; shift; done
trap 'kill -KILL $tasks' TERM  # as srun does: no task sees the signal
trap 'kill -USR1 $tasks' USR1
export SLURM_NTASKS=2 SLURM_STEP_TASKS_PER_NODE=${TASKS_PER_NODE:-2(x1)}
for rank in 0 1; do
    export SLURM_NODEID=$((rank * ${NODE_OF_LAST:-0}))
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & tasks="$tasks $!"
done
worst=0
for task in $tasks; do
    while :; do wait $task; kill -0 $task 2>/dev/null || break; done
    code=0; wait $task || code=$?
    [ $code -le $worst ] || worst=$code
done
exit $worst
"""
TRAINER = f"""#!/bin/bash
[ "$2" != ijepa_ds.cluster.requeue ] || exec {sys.executable} "$@"
echo "$RANK/$LOCAL_RANK of $WORLD_SIZE/$LOCAL_SIZE at $MASTER_ADDR:$MASTER_PORT" >> ranks
printf '<%s>' "$@" >> words
run="runs/a b"
mkdir -p "$run"
save() {{ [ "$RANK" = 1 ] || printf '{{"reason": "stopped by %s"}}' "$1" > "$run/stopped.json"; exit 75; }}
[ -z "$WAIT" ] || {{ trap 'save SIGUSR1' USR1; trap 'save SIGTERM' TERM; touch ready.$RANK; while :; do sleep 0.05; done; }}
[ -z "$STOP" ] || save "$STOP"
[ -z "$MARK" ] || touch "$run/completed.json"
exit ${{CODE:-0}}
"""
SCONTROL = """#!/bin/bash
case "$1 $2" in
    "show hostnames") printf "localhost\\nnode-8\\n" ;;
    "show job") if [ -f job ]; then cat job; else echo "JobState=RUNNING Reason=None PreemptTime=None"; fi ;;
    "show node") echo "NodeName=$4 Arch=x NodeAddr=127.0.0.9 State=IDLE" ;;
    *) echo "$@" >> scontrol.log ;;
esac
"""
JOBS: list[subprocess.Popen[str]] = []  # of the test that runs
COMMAND = ["runs/a b", "--config", "x.yaml", "--deepspeed_config", "z.json", "data.source=$(touch pwned) ;b"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Path]:
    """A folder to submit from, with `bin` and a virtual environment of stand-ins; no job outlives its test."""
    for name, text in (("bin/srun", SRUN), ("bin/scontrol", SCONTROL), ("venv/bin/python", TRAINER)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    yield tmp_path
    while JOBS:
        job = JOBS.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def submit(cluster: Path, repository: Path, **environment: str) -> subprocess.Popen[str]:
    """As slurmd does: a copy of the script, from another folder."""
    shutil.copy(repository / "launch" / "slurm.sbatch", cluster / "slurm_script")
    given = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[7-8]", "IJEPA_DS": str(repository)}
    given |= {"VENV": str(cluster / "venv"), "PATH": f"{cluster}/bin:{os.environ['PATH']}", "PYTHONPATH": str(repository)}
    job = subprocess.Popen(
        ["bash", str(cluster / "slurm_script"), *COMMAND],
        cwd=cluster,
        env=os.environ | given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    JOBS.append(job)
    return job


def test_every_task_is_a_rank_and_words_arrive_as_they_are(cluster: Path, repository: Path) -> None:
    job = submit(cluster, repository, MARK="1")
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == 0, output
    told = sorted((cluster / "ranks").read_text().splitlines())
    assert told == ["0/0 of 2/2 at localhost:23456", "1/1 of 2/2 at localhost:23456"]
    words = "<-m><ijepa_ds.train>" + "".join(f"<{word}>" for word in [*COMMAND[1:], "run.dir=runs/a b"])
    assert (cluster / "words").read_text() == words * 2 and not (cluster / "pwned").exists()
    assert not (cluster / "scontrol.log").exists()


def test_nodes_may_have_different_numbers_of_tasks(cluster: Path, repository: Path) -> None:
    job = submit(cluster, repository, MARK="1", TASKS_PER_NODE="8(x2),4,6(x3)", NODE_OF_LAST="2")
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == 0, output
    told = sorted((cluster / "ranks").read_text().splitlines())
    assert [line.split()[2] for line in told] == ["2/8", "2/4"]


def requeues(cluster: Path) -> int:
    """How often the job was queued again."""
    log = cluster / "scontrol.log"
    return log.read_text().splitlines().count("requeue 123456") if log.exists() else 0


@pytest.mark.parametrize(
    ("trainer", "job_code", "again"),
    [("0", 1, 0), ("1", 1, 0), ("2", 2, 0), ("143", 143, 0), ("70", 70, 1), ("137", 137, 1), ("75", 75, 1)],
)
def test_a_run_without_its_marker_has_failed(trainer: str, job_code: int, again: int, cluster: Path, repository: Path) -> None:
    """A dead rank (70, a signal) and failed storage (75) are queued again; what the user has to change is not."""
    job = submit(cluster, repository, CODE=trainer)
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == job_code, output
    assert requeues(cluster) == again, output


def test_the_marker_of_an_earlier_start_excuses_nothing(cluster: Path, repository: Path) -> None:
    job = submit(cluster, repository, CODE="2", MARK="1")
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == 2, output


@pytest.mark.parametrize(
    ("name", "state", "again"),
    [
        ("SIGUSR1", "RUNNING Reason=None", 1),  # --signal=B:USR1@300
        ("SIGTERM", "RUNNING Reason=None", 0),  # scancel --batch
        ("SIGTERM", "COMPLETING Reason=None", 0),  # scancel
    ],
)
def test_signals_reach_the_ranks_as_sigusr1_and_only_that_of_the_time_limit_queues_again(
    name: str, state: str, again: int, cluster: Path, repository: Path
) -> None:
    job = submit(cluster, repository, WAIT="1")
    wait_until(lambda: len(list(cluster.glob("ready.*"))) == 2, 100, "two tasks")
    (cluster / "job").write_text(f"JobState={state} PreemptTime=None")
    job.send_signal(signal.Signals[name])
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == 75, output  # the ranks have saved
    assert "SIGUSR1" in (cluster / "runs" / "a b" / "stopped.json").read_text()
    assert requeues(cluster) == again, output


@pytest.mark.parametrize(
    ("stop", "state", "again"),
    [
        ("SIGUSR1", "RUNNING Reason=None", 1),  # scancel --signal=USR1, to the ranks alone
        ("SIGUSR1", "COMPLETING Reason=None", 0),  # then scancel
        ("SIGUSR1", "COMPLETING Reason=TimeLimit", 1),
        ("SIGTERM", "RUNNING Reason=None", 0),
        ("SIGTERM", "PENDING Reason=BeginTime", 0),  # a preemption that queues again
    ],
)
def test_the_jobs_state_and_the_ranks_reason_decide(stop: str, state: str, again: int, cluster: Path, repository: Path) -> None:
    (cluster / "job").write_text(f"JobState={state} PreemptTime=None")
    output, _ = submit(cluster, repository, STOP=stop).communicate(timeout=limit(300))
    assert requeues(cluster) == again, output


def test_attempts_without_a_checkpoint_are_bounded_and_another_submission_begins_anew(cluster: Path, repository: Path) -> None:
    for total in (1, 2, 2, 2):
        output, _ = submit(cluster, repository, CODE="70").communicate(timeout=limit(300))
        assert requeues(cluster) == total, output
    assert "attempts in a row saved no newer checkpoint" in output
    output, _ = submit(cluster, repository, CODE="70", SLURM_JOB_ID="123457").communicate(timeout=limit(300))
    assert "requeue 123457" in (cluster / "scontrol.log").read_text(), output


def test_srun_gets_the_cores_the_environment_and_options_of_the_user(cluster: Path, repository: Path) -> None:
    given = {"SLURM_CPUS_PER_TASK": "3", "IJEPA_DS_SRUN_OPTIONS": "--mpi=none  --container-image=a;b"}
    output, _ = submit(cluster, repository, MARK="1", **given).communicate(timeout=limit(300))
    expected = ["--export=ALL", "--kill-on-bad-exit=1", "--cpus-per-task=3", "--mpi=none", "--container-image=a;b"]
    assert (cluster / "options").read_text().splitlines() == expected, output


def test_a_command_that_lacks_something_is_refused(cluster: Path, repository: Path) -> None:
    done = subprocess.run(
        ["bash", str(repository / "launch" / "slurm.sbatch"), "runs/x"],
        env=os.environ | {"IJEPA_DS": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "RUN_DIR --config" in done.stderr


def test_exported_variables_are_what_the_launcher_can_read(repository: Path, tmp_path: Path) -> None:
    def write(**environment: str) -> subprocess.CompletedProcess[str]:
        given = {name: value for name, value in os.environ.items() if name != "TORCH_EXTENSIONS_DIR"} | environment
        given |= {"PATH": "/usr/bin:/bin", "VENV": "/opt/venv", "GLOO_SOCKET_IFNAME": "ib0"}
        script = str(repository / "launch" / "deepspeed_env.sh")
        return subprocess.run(["bash", script], env=given, capture_output=True, text=True)

    (tmp_path / "env").write_text(write().stdout)
    found = parse_environment(tmp_path / "env")
    assert found["PATH"] == "/opt/venv/bin:/usr/bin:/bin" and found["GLOO_SOCKET_IFNAME"] == "ib0"
    assert found["TORCH_EXTENSIONS_DIR"] == "/opt/venv/torch_extensions" and found["HF_HUB_OFFLINE"] == "1"
    assert "TORCH_EXTENSIONS_DIR=/fast/ops\n" in write(TORCH_EXTENSIONS_DIR="/fast/ops").stdout
    refused = write(NCCL_IB_HCA="$(touch x)")
    assert refused.returncode == 1 and "NCCL_IB_HCA" in refused.stderr
