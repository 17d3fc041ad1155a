"""A real mount (FUSE) that is lost, stopped or late: what the user of a run sees, and how the same command continues."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.data.sources import open_source
from ijepa_ds.exits import LOST, STOPPED, USER_ERROR
from tests.dist.launched import Run
from tests.dist.mounts import Mount, why_not
from tests.waiting import limit

pytestmark = pytest.mark.dist
HOST = socket.gethostname()
ALLOWED = r"\(run.hang_timeout: \d+ s\)"
# what a lost mount answers, the second one to a read that was under way
GONE = "(Transport endpoint is not connected|Software caused connection abort)"
PATIENCE = f"run.hang_timeout={limit(15):g}"
UNDER_WAY = "checkpoint of step 5 is safe"
LONG = ("optimization.steps=5000", "run.checkpoint_every=5", "run.keep_last=2", "data.source=disk/images")
# threads may still decode what was read: the run would be over before it needs the storage
SLOW = {"rank": 0, "moment": "step", "action": "slow", "seconds": 0.05}


@pytest.fixture
def disk(place: Path) -> Iterator[Mount]:
    """A mount at `disk`, with the images of `place`."""
    if why := why_not():
        pytest.skip(f"NO MOUNT OF FUSE HERE ({why}): storage that really stops or vanishes was not tested")
    (place / "real").mkdir()
    (place / "images").rename(place / "real" / "images")
    mount = Mount(place / "real", place / "disk")
    try:
        yield mount
    finally:
        mount.close()


def ended(run: Run, disk: Mount, rank: int) -> list[int]:
    """The exit codes after a mount has stopped; `rank` ends by itself, unless it uses the mount too.

    A thread that waits for the answer to a request that the server has read keeps its process: nothing can kill it.
    """
    run.ranks[rank].join(limit(100))
    disk.lose()
    return run.wait(60)


def test_a_lost_mount_is_waited_for_until_it_is_back(place: Path, disk: Mount) -> None:
    run = Run(place, *LONG, faults=[SLOW])
    run.wait_for(UNDER_WAY)
    disk.lose()
    run.wait_for("storage does not answer")
    time.sleep(1.0)
    assert re.search(
        rf"storage does not answer: '.*disk/images/class\d/\d+\.jpg': {GONE}; trying again for",
        run.output,
    ), run.output
    disk.come_back()
    run.wait_for("storage answers again after")
    before = max(list_steps(place / "out"))
    run.wait_for(f"checkpoint of step {before + 10} is safe")
    run.signal(0, signal.SIGTERM)
    assert run.wait() == [STOPPED, STOPPED], run.output
    assert not (place / "out" / "bad_samples.jsonl").exists() and "unreadable" not in run.output


def test_a_mount_that_stays_lost_stops_the_run_with_75(place: Path, disk: Mount) -> None:
    run = Run(place, *LONG, "data.storage_timeout=2", "data.max_bad=0", faults=[SLOW])
    run.wait_for(UNDER_WAY)
    disk.lose()
    codes = run.wait()
    assert set(codes) <= {STOPPED, LOST} and STOPPED in codes, run.output
    assert re.search(
        rf"ijepa_ds stopped.*:\n'.*\.jpg': {GONE} for \d s \(data.storage_timeout: 2\)\. "
        "This is a fault of the storage, not of the file: check the mount",
        run.output,
    ), run.output
    assert "the same command continues; exit code 75" in run.output and "Traceback" not in run.output
    assert not (place / "out" / "bad_samples.jsonl").exists()

    again = Run(place, *LONG, "data.storage_timeout=2")  # nothing is mended yet: it waits, says it, and stops too
    assert STOPPED in again.wait() and "exit code 75" in again.output, again.output
    assert f"exit code 75):\n'{place}/disk/images': Transport endpoint is not connected for" in again.output
    assert "storage does not answer" in again.output
    disk.come_back()
    last = Run(place, *LONG)
    step = max(list_steps(place / "out"))
    last.wait_for(f"checkpoint of step {step + 5} is safe")
    assert f"(step {step})" in last.output, last.output
    last.signal(0, signal.SIGTERM)
    assert last.wait() == [STOPPED, STOPPED], last.output


def test_the_rank_whose_mount_stops_is_named(place: Path, disk: Mount) -> None:
    """On the host of rank 1 alone. A call that does not return is no error, so that nothing can be tried again."""
    (place / "images").mkdir()
    for path in (place / "real" / "images").iterdir():
        (place / "images" / path.name).symlink_to(path)
    cover = {"rank": 1, "action": "cover", "folder": str(place / "images"), "by": str(place / "disk" / "images")}
    run = Run(place, *LONG[:-1], PATIENCE, faults=[cover, SLOW])
    run.wait_for(UNDER_WAY)
    disk.stop()
    time.sleep(2.0)
    disk.go_on()
    run.wait_for(f"checkpoint of step {max(list_steps(place / 'out')) + 10} is safe")  # nothing happened
    assert "storage" not in run.output
    disk.stop()
    assert ended(run, disk, rank=0) == [LOST, LOST], run.output
    named = rf"rank 1 on host {HOST} \(process {run.ranks[1].pid}\) hangs: no progress for \d+ s {ALLOWED} at step \d+, "
    read = r"waiting for images: a read of '.*/images/class\d/\d+.jpg' has not returned for \d+ s\n"
    assert re.search(named + read, run.output), run.output
    assert re.search(r"the others: rank 0 at step \d+, after [a-z_]+, in a collective", run.output), run.output
    assert "rank 0 on host" not in run.output and "loader.py" in run.output.partition("Its stack:")[2]


def test_a_run_directory_that_stops_answering_ends_the_job(place: Path, disk: Mount) -> None:
    """The terminal has the reason although the logs are on that mount."""
    run = Run(place, *LONG[:-1], "data.source=real/images", "run.dir=disk/out", PATIENCE, faults=[SLOW])
    run.wait_for(UNDER_WAY)
    disk.stop()
    assert ended(run, disk, rank=1) == [LOST, LOST], run.output
    named = rf"rank 0 on host {HOST} \(process {run.ranks[0].pid}\) hangs: no progress for \d+ s {ALLOWED} at step \d+, "
    assert re.search(named + "(writing metrics and logs|writing a checkpoint)\n", run.output), run.output
    assert "Its stack:" in run.output and run.output.count(" hangs: ") == 1


def test_a_start_whose_images_do_not_answer_ends(place: Path, disk: Mount) -> None:
    disk.stop()
    run = Run(place, *LONG, PATIENCE)
    assert ended(run, disk, rank=1) == [LOST, LOST], run.output
    named = rf"rank 0 on host {HOST} \(process {run.ranks[0].pid}\) hangs: no progress for \d+ s {ALLOWED} at "
    assert re.search(named + f"opening data.source '{place}/disk/images'\n", run.output), run.output


def test_a_start_whose_run_directory_does_not_answer_ends(place: Path, disk: Mount) -> None:
    """Before the ranks have met: none of them has read its configuration."""
    disk.stop()
    first = {"action": "first_limit", "seconds": limit(8)}
    run = Run(place, *LONG[:-1], "data.source=real/images", "run.dir=disk/out", faults=[first])
    run.wait_for("cannot start")
    assert ended(run, disk, rank=1) == [STOPPED, STOPPED], run.output
    said = r"no progress for \d+ s at the start of this host's ranks, reading the configuration: a file system does not answer"
    assert len(re.findall(said, run.output)) == 1 and "job.py" in run.output, run.output
    assert f"host {HOST} cannot start" in run.output


@pytest.mark.parametrize("source", ["images", "images/made.index"])
def test_a_host_that_does_not_see_the_images_is_named(source: str, place: Path) -> None:
    """Rank 1 has an empty folder there, as where a mount is missing."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: a host without the mount was not tested")
    open_source(str(place / "images")).save(place / "images" / "made.index")
    (place / "empty").mkdir()
    cover = {"rank": 1, "action": "cover", "folder": str(place / "images"), "by": str(place / "empty")}
    run = Run(place, *LONG[:-1], f"data.source={source}", faults=[cover])
    assert run.wait() == [USER_ERROR, USER_ERROR], run.output
    seen = "does not exist" if source.endswith("index") else r"changed since its index .* was made: .*No such file"
    assert re.search(f"ijepa_ds cannot run this .*:\ndata.source: '.*{source}' {seen}", run.output), run.output
    assert f"(only rank 1 on host {HOST})" in run.output and "Traceback" not in run.output
