"""The PyTorchJob of docs/launch.md, with the variables that Kubeflow's training operator sets in its pods."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.dist.pool import free_port
from tests.processes import die_with_parent, outputs_of

# In place of the trainer: what the trainer makes of its environment.
RANK = """
import json, os, sys
from ijepa_ds.distributed.environment import launcher_world
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
launcher_world()  # refuses variables that contradict each other
sys.stdout.write(f"RANK {json.dumps([os.environ[name] for name in names])}\\n")  # one write: the ranks share a pipe
"""


def job(repository: Path) -> dict:
    page = (repository / "docs" / "launch.md").read_text()
    return yaml.safe_load(page.partition("## Kubernetes")[2].partition("```yaml\n")[2].partition("```")[0])


def test_the_job_is_whole(repository: Path) -> None:
    found = job(repository)
    assert (found["apiVersion"], found["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    worker = found["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode")
    spec = worker["template"]["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "pytorch"  # the operator sets its variables in the container of this name
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    command = container["command"]
    assert all(isinstance(word, str) for word in command)
    assert int(command[command.index("--nnodes") + 1]) == worker["replicas"]
    assert int(command[command.index("--nproc-per-node") + 1]) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert command[command.index("--rdzv-endpoint") + 1].startswith(f"{found['metadata']['name']}-worker-0:")


@pytest.mark.slow
@pytest.mark.dist
def test_its_pods_form_one_world(repository: Path, tmp_path: Path) -> None:
    """Two pods of two ranks each; the operator's RANK and WORLD_SIZE count pods, and torchrun replaces them."""
    port = free_port()
    (tmp_path / "rank.py").write_text(RANK)
    command = job(repository)["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]["command"]
    command = command[command.index("torchrun") : command.index("-m")] + [str(tmp_path / "rank.py")]
    command[command.index("--nproc-per-node") + 1] = "2"
    command[command.index("--rdzv-endpoint") + 1] = f"127.0.0.1:{port}"
    tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pods = []
    for pod in range(2):
        theirs = {
            "PYTHONUNBUFFERED": "1", "MASTER_ADDR": "ijepa-worker-0", "MASTER_PORT": "23456", "WORLD_SIZE": "2",
            "RANK": str(pod), "PET_MASTER_ADDR": "ijepa-worker-0", "PET_MASTER_PORT": "23456", "PET_NNODES": "2",
            "PET_NODE_RANK": str(pod), "PET_NPROC_PER_NODE": "auto",
        }  # fmt: skip
        environment = os.environ | {"PATH": tools, "PYTHONPATH": str(repository)} | theirs
        pods.append(
            subprocess.Popen(
                command,
                env=environment,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                preexec_fn=die_with_parent,
            )  # fmt: skip
        )
    outputs = outputs_of(pods, tmp_path, 600)
    ranks = sorted(json.loads(line[5:]) for text in outputs for line in text.splitlines() if line.startswith("RANK "))
    assert ranks == [[str(rank), str(rank % 2), "4", "2"] for rank in range(4)], outputs
