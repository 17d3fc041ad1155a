"""What launchers tell about ranks: their hosts, their numbers, and variables that are no numbers."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ijepa_ds.cluster.environment import recommended
from ijepa_ds.cluster.expected import Expected, expand_nodes
from ijepa_ds.distributed.environment import launcher_world, number_in, world_from_environment
from ijepa_ds.errors import UserError
from tests.dist.launched import environment


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("node1", ["node1"]),
        ("node[1-3,7]", ["node1", "node2", "node3", "node7"]),
        ("a[08-10]b,login", ["a08b", "a09b", "a10b", "login"]),
        ("a,b", ["a", "b"]),
        ("node[x]", []),
        ("", []),
    ],
)
def test_node_lists_of_slurm(text: str, nodes: list[str]) -> None:
    assert expand_nodes(text) == nodes


def test_where_a_missing_rank_should_be() -> None:
    assert Expected(("a", "a", "b"), 0).where(2, {}) == "on host b"
    assert Expected((), 2).where(3, {2: "b"}) == "on host b"
    assert "node 1 (from 0)" in Expected((), 2).where(3, {0: "a"})
    assert "does not name" in Expected().where(3, {0: "a"})


@pytest.mark.parametrize("launcher", ["deepspeed", "slurm"])
def test_hosts_as_launchers_tell_them(launcher: str, tmp_path: Path) -> None:
    """In a child of a process with the launcher's command line, or with SLURM's variables."""
    ask = "from ijepa_ds.cluster.expected import expected_hosts; print(expected_hosts().hosts)"
    variables = environment() | {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}
    command = [sys.executable, "-c", ask]
    if launcher == "deepspeed":
        variables = environment()
        world = base64.urlsafe_b64encode(json.dumps({"n1": [0, 1], "n2": [0, 1]}).encode()).decode()
        run = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ask!r}])"
        command = [sys.executable, "-c", run, f"--world_info={world}"]
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('n1', 'n1', 'n2', 'n2')"


def test_a_hostfile_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("localhost slots=2\n")
    (tmp_path / "far").write_text("far.invalid slots=2\n")
    (tmp_path / "deepspeed").write_text("import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[-1]])")
    ask = "from ijepa_ds.cluster.expected import hostfile_warning; print(hostfile_warning())"
    missing = "there is no hostfile {}, so DeepSpeed's launcher uses this host alone"
    for options, found in (
        (["--hostfile", "nowhere"], missing.format("nowhere")),
        (["--hostfile=no"], missing.format("no")),
        (["-H", "there"], ""),
        (["-H", "far"], "the hostfile far has one host, far.invalid, but DeepSpeed's launcher starts ranks on this one"),
        (["-H", "far", "--force_multi"], ""),
        ([], ""),
    ):
        command = [sys.executable, "deepspeed", *options, ask]
        done = subprocess.run(command, env=environment(), cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == found


def test_numbers_as_slurm_writes_them() -> None:
    assert recommended({"SLURM_CPUS_PER_TASK": "12(x2)"}, 16, False) == {"OMP_NUM_THREADS": "12"}
    assert number_in({"A": " 4 "}, "A") == 4 and number_in({"A": ""}, "A") is None
    with pytest.raises(UserError, match="SLURM_CPUS_PER_TASK is 'lots', expected a whole number"):
        recommended({"SLURM_CPUS_PER_TASK": "lots"}, 2, False)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "SLURM_NTASKS",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "world"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, (1, 0, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, (1, 1, 2)),
    ],
)
def test_worlds_that_are_understood(variables: dict[str, str], world: object, clean: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        clean.setenv(name, value)
    assert launcher_world() == world


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "not LOCAL_RANK.*set LOCAL_RANK=0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE set but not RANK, LOCAL_RANK"),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "contradict each other"),
        ({"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK is 'x', expected a whole number"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR and MASTER_PORT are not both set"),
        (
            {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "http"},
            "MASTER_PORT is 'http'",
        ),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "expected a port"),
        ({"SLURM_NTASKS": "2(x1)"}, "SLURM started several tasks"),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS is 'two'"),
    ],
)
def test_worlds_that_are_refused(variables: dict[str, str], message: str, clean: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        clean.setenv(name, value)
    with pytest.raises(UserError, match=message):
        world_from_environment()
