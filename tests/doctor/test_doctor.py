"""`ijepa-ds doctor`: faults of hosts are found by name. Hosts here are this machine behind a stand-in for ssh; two hosts with
real sshds: tests/dist/test_two_hosts.py."""

import copy
import json
import os
import shlex
import stat
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ijepa_ds import cli
from ijepa_ds.data.values import Values
from ijepa_ds.doctor import probe, remote, rows
from ijepa_ds.doctor.rows import FAIL, OK, WARN, Row
from tests.dist.launched import TINY, prepare


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's folder, with a name that a shell would act on, as the working directory."""
    folder = tmp_path / "it's $(touch pwned); a `touch pwned` & b"
    folder.mkdir()
    prepare(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `ssh` first on PATH that runs the command here; `down` refuses."""
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(
        '#!/bin/sh\nwhile [ "$1" != -- ]; do shift; done\n'
        '[ "$2" != down ] || { echo "ssh: connect to host down port 22: Connection refused" >&2; exit 255; }\n'
        'echo "Welcome to $2"; exec sh -c "$3"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[Row]]:
    """(exit code, rows) of the command, from its JSON."""
    code = cli.main(["doctor", "--config", "run.yaml", "--deepspeed_config", "zero2.json", "--json", *arguments, *TINY])
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] == (code == 0)
    return code, [Row(**row) for row in result["rows"]]


def test_this_machine_alone(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[dict[str, Any]] = []

    def ask_all(names: list, module: str, requests: list, *rest: Any) -> list[remote.Answer]:  # the collectives: tests/dist
        if module.endswith("links"):
            called.extend(requests)
            return [remote.Answer({"ranks": [], "errors": ["rank 1: boom"]}, "", 0, 0)]
        return asked(names, module, requests, *rest)

    from ijepa_ds.doctor import command

    asked = command.ask_all
    monkeypatch.setattr(command, "ask_all", ask_all)
    code, found = doctor(capsys, "--num_gpus", "2", "--master_port", "0")
    assert [(row.check, row.found) for row in found if row.verdict == FAIL] == [("collectives", "rank 1: boom")] and code == 1
    assert called[0]["world"] == 2 and called[0]["device"] in ("cpu", "cuda")
    checks = {row.check for row in found if row.verdict == OK}
    assert {"configuration", "reach", "clock", "memory", "run folder", "sample", "versions", "data", "port"} <= checks
    assert sorted(os.listdir(place)) == ["images", "run.yaml", "zero0.json", "zero1.json", "zero2.json", "zero3.json"]


def test_a_driver_that_fails_is_a_row(
    place: Path, fake_ssh: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nvidia-smi` ends with an error, and nobody says how many GPUs there are."""
    driver = place.parent / "bin" / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'Driver/library version mismatch' >&2; exit 9\n")
    driver.chmod(0o755)
    code, found = doctor(capsys, "--master_port", "0")
    (row,) = (row for row in found if row.check == "GPUs")
    assert code == 1 and row.verdict == FAIL and "nvidia-smi: Driver/library version mismatch" in row.found
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")  # of nested regions
    assert probe.answer({"run_dir": str(place), "source": str(place / "images")})["threads"] == 2


def test_two_hosts_one_of_them_down(place: Path, fake_ssh: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder's name goes through a shell on the way, and nothing of it is run."""
    (place / "hostfile").write_text("up slots=1\ndown slots=1\n")
    code, found = doctor(capsys, "--hostfile", "hostfile", "--master_port", "0")
    assert code == 1
    (failed,) = (row for row in found if row.verdict == FAIL and row.check != "interface")
    assert (failed.host, failed.check) == ("down", "reach") and "Connection refused" in failed.found
    assert any(row.host == "up" and row.check == "reach" and row.verdict == OK for row in found)
    assert any(row.check == "collectives" and row.found.startswith("not tried") for row in found)
    assert not list(place.parent.rglob("pwned")) and not list(place.glob(".ijepa_ds-doctor*"))


def test_all_problems_of_the_command_line_are_told_at_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "hostfile").write_text("a slots=1\n$(touch${IFS}pwned) slots=1\n-oProxyCommand=touch slots=1\n")
    (place / ".deepspeed_env").write_text("A=`touch pwned`\n")
    code, found = doctor(capsys, "--hostfile", "hostfile", "run.dir=x;touch pwned", "data.source={a,b}.tar", "modle.x=1")
    failed = [(row.check, row.found) for row in found if row.verdict == FAIL]
    assert code == 1 and [check for check, _ in failed].count("hostfile") == 2
    told = "\n".join(text for _, text in failed)
    for word in ("hostfile:2", "hostfile:3", ".deepspeed_env:1", "run.dir=x;touch pwned", "data.source={a,b}.tar"):
        assert word in told, told
    assert not list(place.parent.rglob("pwned"))


def test_inside_an_allocation_srun_reaches_the_nodes(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun is a stand-in that runs the command here; the real one: tests/dist/test_slurm.py."""
    scripts = {"srun": 'echo "$@" >> "$CALLS"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"'}
    scripts["scontrol"] = 'printf "n-1\\nn-2\\n"'
    (tmp_path / "bin").mkdir()
    for name, text in scripts.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    code, found = doctor(capsys, "--srun")
    assert code == 1 and any("not inside a SLURM allocation" in row.found for row in found)
    for name, value in {"SLURM_JOB_NODELIST": "n-[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)"}.items():
        monkeypatch.setenv(name, value)
    _, found = doctor(capsys, "--srun", "--master_addr", "127.0.0.1", "--master_port", "0")
    assert [row.found for row in found if row.check == "allocation"] == ["2 hosts, 2 ranks"]
    assert {row.host for row in found if row.check == "reach" and row.verdict == OK and "by srun" in row.found} == {
        "n-1",
        "n-2",
    }
    assert "--overlap --export=ALL --nodes=1 --ntasks=1 --nodelist=n-2" in (tmp_path / "calls").read_text()
    assert any(row.check == "interface" and "127.0.0.1" in row.found for row in found)  # of --master_addr
    monkeypatch.setenv("SLURM_TASKS_PER_NODE", "2,1")
    assert any("same number" in row.found for row in doctor(capsys, "--srun")[1])


def test_deepspeeds_own_variable_names_the_file_of_variables(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("A=`id`\n")
    (place / "hostfile").write_text("- slots=1\n")
    monkeypatch.setenv("DS_ENV_FILE", str(tmp_path / "mine"))
    _, found = doctor(capsys, "--hostfile", "hostfile")
    assert [row.found for row in found if row.check == ".deepspeed_env"][0].startswith(f"{tmp_path}/mine:1")


def test_every_word_of_a_remote_command_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "a;b\n$(c)")
    *ssh, there = remote.over_ssh("node-0", ["python", "-m", "x y"], {"A": "`id`"}, "/data/a b")
    assert ssh[-2:] == ["--", "node-0"] and "BatchMode=yes" in ssh
    words = shlex.split(there)
    assert words[:4] == ["cd", "/data/a b", "&&", "exec"] and words[-3:] == ["python", "-m", "x y"]
    assert "NCCL_DEBUG=a;b\n$(c)" in words and "A=`id`" in words


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What this machine answers."""
    folder = prepare(tmp_path_factory.mktemp("healthy"))
    return probe.answer({"run_dir": str(folder / "out"), "source": str(folder / "images")})


def judge(*answers: dict[str, Any], slots: int = 1, need: float = 0.0) -> dict[tuple[str, str], Row]:
    """Rows that are not ok, of hosts n0, n1, ..."""
    named = {f"n{i}": answer for i, answer in enumerate(answers)}
    found = [row for name, answer in named.items() for row in rows.of_host(name, answer, slots, len(answers) > 1, need)]
    return {(row.host, row.check): row for row in [*found, *rows.compared(named)] if row.verdict != OK}


def changed(answer: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A copy in which parts are others."""
    return copy.deepcopy(answer) | parts


def test_equal_hosts_have_nothing_to_complain_of(healthy: dict[str, Any]) -> None:
    assert {key for key, row in judge(healthy, healthy).items() if row.verdict == FAIL} == set()


def test_the_host_with_another_version_is_named(healthy: dict[str, Any]) -> None:
    other = changed(healthy, versions=healthy["versions"] | {"deepspeed": "0.19.7"})
    found = judge(healthy, other, healthy)
    assert found["n1", "deepspeed"].verdict == FAIL and "0.19.7, but" in found["n1", "deepspeed"].found
    assert judge(other, healthy, healthy)["n0", "deepspeed"].verdict == FAIL  # also when it is the first
    bare = {key: value for key, value in healthy["versions"].items() if "dali" not in key}
    with_dali = changed(healthy, versions=bare | {"nvidia-dali-cuda130": "2.4.0"})
    assert judge(with_dali, changed(healthy, versions=bare))["n1", "DALI"].verdict == FAIL


def test_missing_and_other_data_are_named(healthy: dict[str, Any], tmp_path: Path) -> None:
    missing = probe.answer({"run_dir": str(tmp_path), "source": str(tmp_path / "nowhere")})
    row = judge(healthy, missing)["n1", "data"]
    assert row.verdict == FAIL and "nowhere does not exist" in row.found
    prepare(tmp_path, images=23)
    other = probe.answer({"run_dir": str(tmp_path), "source": str(tmp_path / "images")})
    assert judge(healthy, other)["n1", "data"].verdict == FAIL
    (tmp_path / "images" / "class0" / "0.jpg").write_bytes(b"no image")
    broken = probe.answer({"run_dir": str(tmp_path), "source": str(tmp_path / "images")})
    assert "0.jpg" in judge(broken)["n0", "data"].found


def test_an_index_is_compared_by_its_own_checksum(tmp_path: Path) -> None:
    from ijepa_ds.data.sources import open_source

    prepare(tmp_path)
    index = open_source(str(tmp_path / "images"))
    index.save(tmp_path / "x.index")
    found = probe.answer({"run_dir": str(tmp_path), "source": str(tmp_path / "x.index")})["data"]
    assert found["checksum"] == index.checksum and found["images"] == 24 and found["pixels"] == [48, 40]


def test_shards_and_packed_folders_are_data(tmp_path: Path) -> None:
    prepare(tmp_path)
    assert cli.main(["data", "shard", str(tmp_path / "images"), "--out", str(tmp_path / "shards")]) == 0

    def data(folder: str, **values: Any) -> dict[str, Any]:
        return probe.answer({"run_dir": str(tmp_path), "source": str(tmp_path / folder), "values": values})["data"]

    assert data("shards")["images"] == 24 and data("shards")["pixels"] == [48, 40]
    (tmp_path / "shards" / "images.index").unlink()
    assert data("shards")["of"] == "names and sizes of 1 files"


def test_arrays_are_decoded_as_the_run_reads_them(tmp_path: Path) -> None:
    prepare(tmp_path)
    folder = tmp_path / "images"
    np.save(folder / "a.npy", np.zeros(5))  # first by name; no image unless data.arrays is set
    np.savez(folder / "b.npz", image=np.zeros((3, 20, 30), np.uint8))
    request = {"run_dir": str(tmp_path), "source": str(folder)}
    assert probe.answer(request)["data"]["pixels"] == [48, 40]
    asked = request | {"values": json.loads(json.dumps(asdict(Values(layout="chw"))))}
    assert "shape [5]" in probe.answer(asked)["data"]["error"]
    (folder / "a.npy").unlink()
    assert probe.answer(asked)["data"]["pixels"] == [30, 20]


def test_a_run_folder_that_cannot_take_a_checkpoint(healthy: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = probe.answer({"run_dir": str(tmp_path / "file" / "run"), "source": str(tmp_path)})
    assert "is not a folder" in judge(blocked)["n0", "run folder"].found
    full = changed(healthy, disk={"error": "[Errno 28] No space left on device"})
    assert judge(full)["n0", "run folder"].verdict == FAIL
    assert judge(healthy, need=1e18)["n0", "run folder"].verdict == WARN


GPU = {"name": "A100", "memory.total": "81920", "driver_version": "580.1", "memory.used": "3"}
GPU["ecc.errors.uncorrected.volatile.total"] = "0"


def test_gpus_are_counted(healthy: dict[str, Any]) -> None:
    gpu = GPU
    eight = changed(healthy, gpus=[gpu] * 8, cores=64)
    assert judge(eight, eight, slots=8) == {}
    assert "7 x A100" in judge(eight, changed(eight, gpus=[gpu] * 7), slots=8)["n1", "GPUs"].found
    sick = gpu | {"ecc.errors.uncorrected.volatile.total": "2"}
    assert judge(changed(eight, gpus=[gpu] * 7 + [sick]), slots=8)["n0", "GPU health"].verdict == FAIL
    assert judge(eight, healthy)["n1", "kind of device"].verdict == FAIL
    assert judge(changed(eight, gpus={"error": "nvidia-smi: no devices"}))["n0", "GPUs"].verdict == FAIL
    assert probe.smallest_memory([gpu, gpu | {"memory.total": "40960"}]) == 40.0
    assert probe.smallest_memory([gpu | {"memory.total": "[N/A]"}]) is None and probe.smallest_memory([]) is None


@pytest.mark.parametrize(("skew", "verdict", "word"), [(0, OK, "agrees"), (-5, WARN, "behind"), (3600, FAIL, "ahead")])
def test_clocks(skew: float, verdict: str, word: str) -> None:
    now = time.time()
    row = rows.clock("n0", now + skew, now - 1, now + 1)
    assert row.verdict == verdict and word in row.found


def test_the_table_begins_with_what_fails() -> None:
    found = [Row(f"n{i}", "data", OK, "same") for i in range(3)]
    found += [Row("n1", "clock", WARN, "late", "mend it"), Row("n2", "reach", FAIL, "down\nreally", "start it")]
    lines = rows.table(found).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [FAIL, "really", "->", WARN, "->", OK]
    assert "3 hosts" in lines[-1]


def test_limits_of_containers_are_named(healthy: dict[str, Any]) -> None:
    small = changed(healthy, gpus=[GPU] * 8, cores=64, shared_memory=64 << 20, locked_memory={"limit": 64 << 10, "rdma": True})
    found = judge(small, slots=8)
    assert ("n0", "shared memory") not in judge(changed(small, gpus=[]), slots=8)  # gloo does not use it
    assert "64 MiB for 8 ranks" in found["n0", "shared memory"].found and "shm-size" in found["n0", "shared memory"].todo
    assert "0.06 MiB" in found["n0", "locked memory"].found
    plain = changed(small, shared_memory=1 << 40, locked_memory={"limit": -1, "rdma": True})
    assert not {("n0", "shared memory"), ("n0", "locked memory")} & judge(plain, slots=8).keys()
