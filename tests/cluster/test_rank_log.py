"""What a rank prints, and where it goes: each in a process of its own, because descriptors are changed."""

import subprocess
import sys
from pathlib import Path

import pytest

from ijepa_ds.cluster.environment import name_ranks, recommended
from ijepa_ds.exits import LOST
from tests.waiting import limit

SPEAK = """
import logging, os, sys
from pathlib import Path
from ijepa_ds import terminal
from ijepa_ds.cluster import rank_log
terminal.begin()
log = logging.getLogger("ijepa_ds.x")
other = logging.getLogger("DeepSpeed")
other.addHandler(logging.StreamHandler(sys.stdout))
other.propagate = False  # as DeepSpeed does
print("before")
rank_log.hold(int(sys.argv[1]))
other.warning("while it loads")
rank_log.open_log(Path("run"), int(sys.argv[1]), 2)
print("printed")
log.info("logged")
log.debug("detailed")
other.warning("by another package")
logging.getLogger("torch.x").warning("of torch")
sys.stderr.write("to stderr\\n")
os.system("echo from another program")
rank_log.note("noted\\n")
rank_log.show("shown\\n")
rank_log.say("said\\n")
"""


def speak(place: Path, rank: int, code: str = SPEAK) -> tuple[str, str]:
    """(terminal, file) of a rank that says all kinds of things."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(rank)], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout, (place / "run" / "logs" / f"rank_{rank:05d}.log").read_text()


def test_rank_0_speaks_on_the_terminal_and_into_its_file(tmp_path: Path) -> None:
    terminal, file = speak(tmp_path, 0)
    for word in ("logged", "said"):
        assert terminal.count(word) == file.count(word) == 1, word
    for word in (  # of libraries, other programs, and details
        "printed",
        "detailed",
        "to stderr",
        "from another program",
        "by another package",
        "while it loads",
        "of torch",
    ):
        assert file.count(word) == 1 and word not in terminal, word
    assert "noted" in file and "noted" not in terminal and "shown" in terminal and "shown" not in file


def test_other_ranks_are_silent_down_to_other_programs(tmp_path: Path) -> None:
    terminal, file = speak(tmp_path, 1)
    for word in ("printed", "logged", "to stderr", "from another program", "by another package", "while it loads", "noted"):
        assert file.count(word) == 1 and word not in terminal, word
    assert sorted(terminal.split()) == ["before", "said", "shown"] and "said" in file
    header = file.splitlines()[0]
    assert header.startswith("== ") and " rank 1 of 2 on host " in header


def test_a_later_start_appends(tmp_path: Path) -> None:
    speak(tmp_path, 1)
    _, file = speak(tmp_path, 1)
    assert file.count("rank 1 of 2 on host") == file.count("printed") == 2


def test_last_words_are_those_of_the_last_start(tmp_path: Path) -> None:
    code = "from pathlib import Path\nfrom ijepa_ds.cluster import rank_log\nrank_log.open_log(Path('run'), 0, 2)\n"
    speak(tmp_path, 1)
    words = "f'{rank_log.last_words(1, 2)!r} {rank_log.last_words(7)!r}'"
    terminal, _ = speak(tmp_path, 0, f"{code}rank_log.show({words})")
    assert terminal.strip() == r"'noted\nsaid' ''"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("a file in the way")
    code = "from pathlib import Path\nfrom ijepa_ds.cluster import rank_log\n"
    code += "try:\n    rank_log.open_log(Path('run'), 1, 2)\nexcept ValueError as error:\n    rank_log.say(str(error))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "rank_00001.log cannot be written" in done.stderr


def test_what_was_held_is_shown_if_there_is_never_a_log(tmp_path: Path) -> None:
    code = "from ijepa_ds.cluster import rank_log\nrank_log.hold(0)\nprint('of a library')\nrank_log.release()\nprint('after')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr == "of a library\n" and done.stdout == "after\n"


TASK = {"LOCAL_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"}


@pytest.mark.parametrize(
    ("environment", "gpu", "threads"),
    [
        ({}, False, "16"),
        ({}, True, "8"),
        ({"LOCAL_SIZE": "4", "WORLD_SIZE": "4"}, False, "4"),
        ({"LOCAL_SIZE": "32", "WORLD_SIZE": "32"}, False, "1"),
        (TASK | {"SLURM_CPUS_PER_TASK": "6"}, False, "6"),  # srun started each
        (TASK | {"SLURM_CPUS_PER_TASK": "64"}, False, "16"),  # the affinity is smaller
        (TASK | {"SLURM_CPUS_ON_NODE": "64"}, False, "16"),  # bound: 4 x 16 cores
        (TASK | {"SLURM_CPUS_ON_NODE": "16"}, False, "4"),  # not bound: all four run on the same 16
        (TASK | {"SLURM_CPUS_PER_TASK": "12", "SLURM_STEP_NUM_TASKS": "1"}, False, "3"),  # `deepspeed` in one task
        ({"OMP_NUM_THREADS": "3"}, False, None),
    ],
)
def test_threads_are_chosen_only_where_nobody_has(environment: dict[str, str], gpu: bool, threads: str | None) -> None:
    assert recommended(environment, 16, gpu).get("OMP_NUM_THREADS") == threads


def test_the_interface_is_chosen_for_several_hosts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from ijepa_ds.cluster import environment as variables
    from ijepa_ds.cluster.hosts import Interface

    monkeypatch.setattr(variables, "interface_towards", lambda host: Interface("ib7", "10.0.0.1") if host == "node-0" else None)
    two = {"LOCAL_SIZE": "8", "WORLD_SIZE": "16", "MASTER_ADDR": "node-0"}
    assert recommended(two, 16, True)["GLOO_SOCKET_IFNAME"] == recommended(two, 16, True)["NCCL_SOCKET_IFNAME"] == "ib7"
    assert "NCCL_SOCKET_IFNAME" not in recommended(two | {"NCCL_SOCKET_IFNAME": "eth1"}, 16, True)
    assert list(recommended(two | {"WORLD_SIZE": "8"}, 16, True)) == ["OMP_NUM_THREADS", "TORCH_GLOO_LAZY_INIT"]
    assert list(recommended(two | {"MASTER_ADDR": "nowhere"}, 16, True)) == ["OMP_NUM_THREADS", "TORCH_GLOO_LAZY_INIT"]
    assert list(recommended({"WORLD_SIZE": "1"}, 16, True)) == ["OMP_NUM_THREADS"]


def test_ranks_of_open_mpi_get_their_names() -> None:
    theirs = {"RANK": "5", "LOCAL_RANK": "1", "SIZE": "8", "LOCAL_SIZE": "4"}
    environment = {f"OMPI_COMM_WORLD_{name}": value for name, value in theirs.items()}
    name_ranks(environment)
    assert {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE")} == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_SIZE": "4",
    }
    alone: dict[str, str] = {}
    name_ranks(alone)
    assert alone == {}


HANGS = """
import os, sys, threading
from pathlib import Path
from ijepa_ds.cluster import leave, rank_log
rank_log.open_log(Path("run"), 0, 2)
leave._DEADLINE = 2.0
reading, writing = os.pipe()
os.set_blocking(writing, False)
try:
    while True:
        os.write(writing, bytes(4096))
except BlockingIOError:
    os.set_blocking(writing, True)
rank_log._log = writing  # a full pipe: writes to the log wait for ever, as on a disk that hangs
leave.leave("rank 3 hangs")
"""


def test_the_terminal_gets_the_reason_and_the_process_ends_although_the_disk_of_the_log_hangs(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], cwd=tmp_path, capture_output=True, text=True, timeout=limit(60))
    assert done.returncode == LOST and "rank 3 hangs. The same command continues" in done.stderr
