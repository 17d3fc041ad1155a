"""launch/slurm.sbatch and launch/deepspeed_env.sh, with stand-ins for srun, scontrol and the trainer."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ijepa_ds.cluster.hosts import parse_environment
from tests.waiting import limit, wait_until

SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=1
trap 'kill -TERM $tasks' TERM  # as srun does
export SLURM_NTASKS=2 SLURM_STEP_TASKS_PER_NODE='2(x1)'
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" & tasks="$tasks $!"; done
worst=0
for task in $tasks; do
    while :; do code=0; wait $task || code=$?; kill -0 $task 2>/dev/null || break; done
    [ $code -le $worst ] || worst=$code
done
exit $worst
"""
TRAINER = """#!/bin/bash
echo "$RANK/$LOCAL_RANK of $WORLD_SIZE/$LOCAL_SIZE at $MASTER_ADDR:$MASTER_PORT" >> ranks
printf '<%s>' "$@" >> words
[ -z "$WAIT" ] || { trap 'exit 75' TERM; touch ready.$RANK; while :; do sleep 0.05; done; }
[ -z "$MARK" ] || { mkdir -p "runs/a b"; touch "runs/a b/completed.json"; }
exit ${CODE:-0}
"""
COMMAND = ["runs/a b", "--config", "x.yaml", "--deepspeed_config", "z.json", "data.source=$(touch pwned) ;b"]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder to submit from, with `bin` and a virtual environment of stand-ins."""
    scontrol = '#!/bin/bash\ncase $1 in show) printf "node-7\\nnode-8\\n" ;; *) echo "$@" >> scontrol.log ;; esac\n'
    for name, text in (("bin/srun", SRUN), ("bin/scontrol", scontrol), ("venv/bin/python", TRAINER)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def submit(cluster: Path, repository: Path, **environment: str) -> subprocess.Popen[str]:
    """As slurmd does: a copy of the script, from another folder."""
    shutil.copy(repository / "launch" / "slurm.sbatch", cluster / "slurm_script")
    given = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node-[7-8]", "IJEPA_DS": str(repository)}
    given |= {"VENV": str(cluster / "venv"), "PATH": f"{cluster}/bin:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", str(cluster / "slurm_script"), *COMMAND],
        cwd=cluster,
        env=os.environ | given | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_every_task_is_a_rank_and_words_arrive_as_they_are(cluster: Path, repository: Path) -> None:
    job = submit(cluster, repository, MARK="1")
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == 0, output
    told = sorted((cluster / "ranks").read_text().splitlines())
    assert told == ["0/0 of 2/2 at node-7:23456", "1/1 of 2/2 at node-7:23456"]
    words = "<-m><ijepa_ds.train>" + "".join(f"<{word}>" for word in [*COMMAND[1:], "run.dir=runs/a b"])
    assert (cluster / "words").read_text() == words * 2 and not (cluster / "pwned").exists()
    assert not (cluster / "scontrol.log").exists()


@pytest.mark.parametrize(("trainer", "job_code"), [("0", 1), ("1", 1), ("70", 70), ("2", 2)])
def test_a_run_without_its_marker_has_failed(trainer: str, job_code: int, cluster: Path, repository: Path) -> None:
    job = submit(cluster, repository, CODE=trainer)
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == job_code, output
    assert not (cluster / "scontrol.log").exists()  # what failed is not queued again


def test_the_marker_of_an_earlier_start_excuses_nothing(cluster: Path, repository: Path) -> None:
    job = submit(cluster, repository, CODE="2", MARK="1")
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == 2, output


def test_a_signal_reaches_the_ranks_and_the_job_is_queued_again(cluster: Path, repository: Path) -> None:
    job = submit(cluster, repository, WAIT="1")
    wait_until(lambda: len(list(cluster.glob("ready.*"))) == 2, 100, "two tasks")
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=limit(300))
    assert job.returncode == 75, output
    assert (cluster / "scontrol.log").read_text() == "requeue 123456\n"


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
        given = os.environ | {"PATH": "/usr/bin:/bin", "VENV": "/opt/venv", "GLOO_SOCKET_IFNAME": "ib0"} | environment
        script = str(repository / "launch" / "deepspeed_env.sh")
        return subprocess.run(["bash", script], env=given, capture_output=True, text=True)

    (tmp_path / "env").write_text(write().stdout)
    found = parse_environment(tmp_path / "env")
    assert found["PATH"] == "/opt/venv/bin:/usr/bin:/bin" and found["GLOO_SOCKET_IFNAME"] == "ib0"
    assert found["TORCH_EXTENSIONS_DIR"] == "/opt/venv/torch_extensions" and found["HF_HUB_OFFLINE"] == "1"
    refused = write(NCCL_IB_HCA="$(touch x)")
    assert refused.returncode == 1 and "NCCL_IB_HCA" in refused.stderr
