"""Two hosts with sshds and networks of their own: training through pdsh, a cable that is taken out, and the doctor."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dist.launched import REPOSITORY, TINY, read_completed
from tests.dist.launches import losses
from tests.dist.pool import free_port
from tests.dist.two_hosts import TwoHosts, why_not
from tests.processes import die_with_parent, kill_all_of
from tests.waiting import limit, wait_until

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.nightly]
BIN = Path(sys.executable).parent
FILES = ["--config", "run.yaml", "--deepspeed_config", "zero3.json"]
LONG = ["optimization.steps=300", "run.checkpoint_every=20"]
CLOCK = "import time\nwrong = time.time\ntime.time = lambda: wrong() - 3600\n"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    """Both, for all tests of this file."""
    why = why_not()
    if why:
        pytest.skip(f"NO TWO HOSTS HERE ({why}): launching through ssh did not run")
    made = TwoHosts(tmp_path_factory.mktemp("hosts"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def place(place: Path, hosts: TwoHosts) -> Iterator[Path]:
    """A run's folder with a hostfile and what must travel; what was started in it, here or on a host, is ended."""
    hosts.hostfile(place / "hostfile")
    extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache/torch_extensions"))
    travels = {"PATH": f"{BIN}:/usr/bin:/bin", "TORCH_EXTENSIONS_DIR": extensions}
    travels |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    (place / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in travels.items()))
    (place / "site").mkdir()
    (place / "site" / "sitecustomize.py").touch()
    yield place
    kill_all_of(place)  # launchers first: they would wait for what they started
    for i in range(2):
        hosts.mend(i)
        for pid in ranks(hosts, i):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def environment(hosts: TwoHosts, place: Path) -> dict[str, str]:
    """Of the machine that launches."""
    given = {"PYTHONPATH": f"{REPOSITORY}:{place}/site", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    return hosts.environment | given | {"PATH": f"{hosts.folder}/bin:{BIN}:{hosts.environment['PATH']}"}


def launch(hosts: TwoHosts, place: Path, *options: str, log: str, run: str) -> subprocess.Popen[bytes]:
    """`deepspeed OPTIONS ...` in a session of its own, its output in a file."""
    command = [str(BIN / "deepspeed"), *options, "--master_port", str(free_port()), "--module", "ijepa_ds.train"]
    with (place / log).open("wb") as file:
        return subprocess.Popen(
            [*command, *FILES, *TINY, *LONG, f"run.dir={run}"],
            cwd=place,
            env=environment(hosts, place),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def ranks(hosts: TwoHosts, i: int) -> list[int]:
    """Processes of training on a host."""
    found = []
    for pid in hosts.processes(i):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"ijepa_ds.train" in words:
            found.append(pid)
    return found


@pytest.mark.skipif(not shutil.which("pdsh"), reason="NO PDSH: launching through it did not run")
def test_two_hosts_train_as_one_and_survive_a_cut_cable(hosts: TwoHosts, place: Path) -> None:
    straight = launch(hosts, place, "--num_gpus", "2", log="straight.txt", run="straight")
    assert straight.wait(limit(600)) == 0, (place / "straight.txt").read_text()
    expected = losses(place / "straight")

    broken = launch(hosts, place, "--hostfile", "hostfile", log="broken.txt", run="two")
    log = place / "broken.txt"

    def safe() -> bool:
        return "checkpoint of step 20 is safe" in log.read_text() or broken.poll() is not None

    wait_until(safe, 600, log.read_text, pause=0.02)
    assert broken.poll() is None, log.read_text()
    hosts.cut(1)
    wait_until(lambda: not ranks(hosts, 0) and not ranks(hosts, 1), 300, log.read_text, pause=0.5)
    hosts.mend(1)
    broken.wait(limit(300))
    assert not (place / "two" / "completed.json").exists()  # the cut came before the end
    output = log.read_text()
    assert f"rank 1 on host {hosts.hostnames[1]}" in output and "has not been heard of for 30 s" in output, output
    other = (place / "two" / "logs" / "rank_00001.log").read_text()  # its terminal was cut off as well
    assert f"rank 0 on host {hosts.hostnames[0]}" in other and "cannot be reached" in other, other

    again = launch(hosts, place, "--hostfile", "hostfile", log="again.txt", run="two")
    assert again.wait(limit(900)) == 0, (place / "again.txt").read_text()
    text = (place / "again.txt").read_text()
    assert read_completed(place / "two")["steps"] == 300 and "continuing" in text
    assert f"{hosts.hostnames[0]}: rank 0; {hosts.hostnames[1]}: rank 1" in text
    found = losses(place / "two")
    assert found.keys() == expected.keys() == set(range(1, 301))
    assert all(abs(found[step] - expected[step]) <= 1e-5 * expected[step] for step in found)


def doctor(hosts: TwoHosts, place: Path) -> tuple[int, dict[tuple[str, str], str]]:
    """(exit code, what failed)."""
    command = [str(BIN / "ijepa-ds"), "doctor", "--hostfile", "hostfile", "--master_port", str(free_port()), "--json", *FILES]
    done = subprocess.run([*command, *TINY], cwd=place, env=environment(hosts, place), capture_output=True, text=True)
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)["rows"]
    (place / "rows.json").write_text(done.stdout)
    return done.returncode, {(row["host"], row["check"]): row["found"] for row in rows if row["verdict"] == "FAIL"}


def test_the_doctor_finds_two_healthy_hosts_healthy(hosts: TwoHosts, place: Path) -> None:
    code, failed = doctor(hosts, place)
    assert (code, failed) == (0, {})
    rows = {(row["host"], row["check"]): row["found"] for row in json.loads((place / "rows.json").read_text())["rows"]}
    assert "all-reduce" in rows["(here)", "collectives"] and "2 ranks" in rows["(here)", "collectives"]
    for address in hosts.addresses:
        assert rows[address, "interface"].startswith(f"eth0 ({address})")
        assert rows[address, "shared folder"] == "sees what the others wrote"
        assert "GLOO_SOCKET_IFNAME=eth0" in rows[address, "environment"]


def test_the_doctor_names_the_host_and_what_is_wrong_with_it(hosts: TwoHosts, place: Path) -> None:
    """Mounts on the second host: its own image folder and site-packages, a full disk; and a clock that is an hour late."""
    import deepspeed

    metadata = next(Path(deepspeed.__file__).parents[1].glob("deepspeed-*.dist-info")) / "METADATA"
    (place / "METADATA").write_text(metadata.read_text().replace("\nVersion: ", "\nVersion: 9."))
    (place / "clock.py").write_text(CLOCK)
    (place / "out").mkdir()
    mounts = [
        ("-t", "tmpfs", "-o", "size=64k", "none", str(place / "images")),
        ("-t", "tmpfs", "-o", "size=64k", "none", str(place / "out")),
        ("--bind", str(place / "METADATA"), str(metadata)),
        ("--bind", str(place / "clock.py"), str(place / "site" / "sitecustomize.py")),
    ]
    try:
        for mount in mounts:
            assert hosts.on(1, "mount", *mount).returncode == 0
        code, failed = doctor(hosts, place)
    finally:
        for mount in reversed(mounts):
            hosts.on(1, "umount", mount[-1])
    bad = hosts.addresses[1]
    assert code == 1 and set(failed) == {(bad, check) for check in ("data", "run folder", "deepspeed", "clock")}, failed
    assert "no image in" in failed[bad, "data"] and "No space left" in failed[bad, "run folder"]
    assert failed[bad, "deepspeed"].startswith("9.") and failed[bad, "clock"].startswith(("at least 3,59", "at least 3,600"))


def test_the_doctor_names_a_host_whose_sshd_is_gone(hosts: TwoHosts, place: Path) -> None:
    hosts.stop_sshd(1)
    try:
        code, failed = doctor(hosts, place)
    finally:
        hosts.start_sshd(1)
    assert code == 1 and set(failed) == {(hosts.addresses[1], "reach")}
    assert "Connection refused" in failed[hosts.addresses[1], "reach"]
