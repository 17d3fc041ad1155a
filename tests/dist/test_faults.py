"""Faults that really happen to running jobs: what is killed, hangs, fills up or is asked to stop, and what is left."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.checkpoint.reader import CheckpointReader, newest
from ijepa_ds.exits import LOST, STOPPED
from tests.dist.launched import TINY, Run, environment
from tests.dist.pool import free_port
from tests.processes import die_with_parent, kill_all_of, processes_of
from tests.waiting import limit, wait_until

# Rank 0 opens the log while the others wait for it: on a busy machine this took more than 4 s.
PATIENCE = f"run.hang_timeout={limit(15):g}"
UNDER_WAY = "checkpoint of step 5 is safe"  # the progress bar comes every 15 s only, where there is no terminal
pytestmark = pytest.mark.dist
HOST = socket.gethostname()
ALLOWED = r"\(run.hang_timeout: \d+ s\)"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1.5 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("NO RIGHT TO MOUNT: the test with a disk that is really full did not run")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("moment", ["forward", "backward", "optimizer", "save", "commit"])
def test_a_killed_rank_ends_the_job_and_is_named(moment: str, place: Path) -> None:
    """No launcher is there to clean up. What was saved before is whole, and the same command continues from it."""
    victim, at = (0, 2) if moment == "commit" else (1, {"save": 2}.get(moment, 5))
    fault = {"rank": victim, "moment": moment, "at": at, "action": "kill"}
    arguments = ("run.checkpoint_every=2", "optimization.steps=8", "model.precision=float32")
    run = Run(place, *arguments, stage=3 if moment == "backward" else 2, faults=[fault])
    codes = run.wait()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == LOST, run.output
    assert f"rank {victim} on host {HOST} (process {run.ranks[victim].pid}) has died" in run.output
    reader = newest(place / "out")
    steps = list_steps(place / "out")
    assert reader is not None and reader.manifest["step"] == steps[-1] >= 2  # nothing half-done is taken for whole
    if moment not in ("save", "commit"):
        return
    again = Run(place, *arguments)
    assert again.wait() == [0, 0], again.output
    assert f"(step {steps[-1]})" in again.output and list_steps(place / "out") == [6, 8]
    assert not list((place / "out" / "checkpoints").glob(".step_*"))  # what the dead one left is swept away


def test_a_hanging_rank_is_named_with_its_stack(place: Path) -> None:
    fault = {"rank": 1, "moment": "forward", "at": 4, "action": "hang"}
    run = Run(place, PATIENCE, "optimization.steps=50", faults=[fault])
    assert run.wait() == [LOST, LOST], run.output
    assert f"rank 1 on host {HOST} (process {run.ranks[1].pid}) hangs" in run.output
    assert "rank 0 on host" not in run.output
    stack = run.output.partition("Its stack:")[2]
    assert "faults.py" in stack and "loop.py" in stack and "in train" in stack


def test_a_writer_that_hangs_is_named_and_not_the_ranks_that_wait_for_it(place: Path) -> None:
    fault = {"rank": 1, "moment": "save", "at": 1, "action": "hang"}
    run = Run(place, PATIENCE, "run.checkpoint_every=2", "optimization.steps=50", faults=[fault])
    assert run.wait() == [LOST, LOST], run.output
    named = rf"rank 1 on host {HOST} \(process {run.ranks[1].pid}\) hangs: no progress for \d+ s {ALLOWED} "
    assert re.search(named + "at step 4, writing a checkpoint\n", run.output), run.output
    assert re.search("the others: rank 0 at step 4, writing a checkpoint, in a collective", run.output), run.output
    assert "rank 0 on host" not in run.output


def test_a_loader_that_is_stuck_is_named_after_saves_of_different_length(place: Path) -> None:
    faults = [
        {"rank": 2, "moment": "save", "action": "slow", "seconds": 1.5},
        {"rank": 2, "moment": "read", "at": 15, "action": "hang"},
    ]
    run = Run(
        place, PATIENCE, "run.checkpoint_every=2", "optimization.steps=50", "optimization.batch_size=6", ranks=3, faults=faults
    )
    assert run.wait() == [LOST] * 3, run.output
    named = rf"rank 2 on host {HOST} \(process {run.ranks[2].pid}\) hangs: no progress for \d+ s {ALLOWED} "
    assert re.search(named + r"at step \d+, waiting for images\n", run.output), run.output
    assert re.search(r"the others: ranks 0-1 at step \d+, after [a-z_]+, in a collective", run.output), run.output
    assert run.output.count(" hangs: ") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_process_is_named_and_the_job_ends(rank: int, place: Path) -> None:
    """SIGSTOP; of rank 0 as well, which keeps the store through which ranks tell each other how they are."""
    run = Run(place, PATIENCE, "optimization.steps=5000", "run.checkpoint_every=5")
    run.wait_for(UNDER_WAY)
    run.signal(rank, signal.SIGSTOP)
    run.ranks[1 - rank].join(limit(120))
    assert run.ranks[1 - rank].exitcode == LOST, run.output
    assert f"rank {rank} on host {HOST} (process {run.ranks[rank].pid}) hangs" in run.output and "SIGSTOP" in run.output
    run.signal(rank, signal.SIGCONT)
    assert run.wait()[rank] == LOST, run.output


@pytest.mark.parametrize(("number", "rank"), [(signal.SIGTERM, 1), (signal.SIGUSR1, 0), (signal.SIGINT, None)])
def test_a_signal_saves_and_stops_all_ranks(number: int, rank: int | None, place: Path) -> None:
    run = Run(place, "optimization.steps=5000", "run.checkpoint_every=5", "run.keep_last=1", stage=3)
    run.wait_for(UNDER_WAY)
    for which in (0, 1) if rank is None else (rank,):  # Ctrl-C reaches every process of the terminal
        run.signal(which, number)
    assert run.wait() == [STOPPED, STOPPED], run.output
    (step,) = list_steps(place / "out")
    assert f"stopped by {signal.Signals(number).name} after step {step}; saved" in run.output
    assert CheckpointReader(place / "out" / "checkpoints" / f"step_{step:08d}").manifest["step"] == step


def fill(ballast: Path) -> None:
    """Take all room that is left, whatever the run takes meanwhile."""
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_is_said_and_training_goes_on(place: Path, small_disk: Path) -> None:
    run_dir, ballast = small_disk / "out", small_disk / "ballast"
    arguments = (f"run.dir={run_dir}", "run.checkpoint_every=10", "optimization.steps=400")
    run = Run(place, *arguments, faults=[{"rank": 0, "moment": "step", "action": "slow"}])
    run.wait_for("checkpoint of step 10 is safe")
    fill(ballast)
    run.wait_for("NOT SAVED")
    assert "TensorBoard's event file" in run.output and "cannot be written (No space left on device)" in run.output
    first = re.search(r"checkpoint of step (\d+) NOT SAVED; older ones are untouched: (.*)", run.output)
    assert first and "No space left on device" in first[2] and "shard_0000" in first[2], run.output
    assert re.search(r"[\d,]+ bytes are needed, [\d,]+ are free", first[2])
    kept = list_steps(run_dir)
    assert kept and newest(run_dir)
    ballast.unlink()  # room again: the next try succeeds, soon
    run.wait_for(f"checkpoint of step {int(first[1]) + 10}")
    run.signal(0, signal.SIGTERM)
    assert run.wait() == [STOPPED, STOPPED], run.output
    reader = newest(run_dir)
    assert reader is not None and reader.manifest["step"] > int(first[1])
    fill(ballast)
    again = Run(place, *arguments)
    assert again.wait() == [2, 2] and "cannot be written (No space left on device)" in again.output, again.output


def test_losses_that_are_not_finite_are_named_and_three_in_a_row_stop_the_run(place: Path) -> None:
    once = {"rank": 1, "moment": "forward", "at": 3, "action": "nan"}
    forever = {"rank": 1, "moment": "forward", "at": 6, "until": 99, "action": "nan"}
    run = Run(place, "optimization.steps=20", "run.checkpoint_every=4", faults=[once, forever])
    assert set(run.wait()) <= {2, LOST}, run.output
    assert "step 3 SKIPPED: the loss is not finite on rank 1" in run.output
    assert "3 skipped steps in a row (run.max_nonfinite)" in run.output and "step 9 SKIPPED" not in run.output
    lines = [json.loads(line) for line in (place / "out" / "skipped_steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 7, 8]
    assert all(len(line["images"]) == 4 and line["ranks"] == {"1": HOST} for line in lines)
    reader = newest(place / "out")
    assert reader is not None and reader.read("ema", reader.names("ema")[0]).isfinite().all()


def test_a_logged_step_without_a_finite_loss_is_skipped_like_others(place: Path) -> None:
    """Its images are those that were shown, not the unreadable ones for which they stood in."""
    damaged = [path for path in (place / "images").rglob("*.jpg") if int(path.stem) < 8]
    for path in damaged:
        path.write_bytes(b"no image")
    faults = [{"rank": rank, "moment": "forward", "at": 3, "action": "nan"} for rank in (0, 1)]
    run = Run(place, "optimization.steps=6", "run.log_every=1", "data.max_bad_share=0.5", faults=faults)
    assert set(run.wait()) == {0}, run.output
    assert "step 3 SKIPPED: the loss is not finite" in run.output
    (line,) = (place / "out" / "skipped_steps.jsonl").read_text().splitlines()
    images = json.loads(line)["images"]
    assert len(images) == 8 and not {str(path) for path in damaged} & {*images}, images


def test_what_cannot_be_written_is_said_at_the_start(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "checkpoints").write_text("a file in the way")
    (place / "out" / "skipped_steps.jsonl").mkdir()
    run = Run(place)
    assert set(run.wait()) == {2}
    for name in ("checkpoints", "skipped_steps.jsonl"):  # all at once
        assert f"run.dir: {place / 'out' / name} cannot be written" in run.output and "Traceback" not in run.output


def samples(place: Path) -> dict[int, list[int]]:
    """Step -> images of its global batch, from the logs of all ranks; the logs are deleted."""
    found: dict[int, list[int]] = {}
    for file in place.glob("samples-*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            found[line["step"]] = sorted(found.get(line["step"], []) + line["samples"])
        file.unlink()
    return found


def test_a_checkpoint_of_another_configuration_is_passed_over_and_other_ranks_go_on_with_the_same_images(place: Path) -> None:
    arguments = ("run.checkpoint_every=2", "optimization.steps=4")
    assert Run(place, *arguments, stage=3, samples=place).wait() == [0, 0]
    first = samples(place)
    foreign = place / "out" / "checkpoints" / "step_00000004"
    manifest = json.loads((foreign / "manifest.json").read_text())
    manifest |= {"fingerprint": "0" * 16, "config": manifest["config"].replace("lr: 0.001", "lr: 0.003")}
    (foreign / "manifest.json").write_text(json.dumps(manifest))

    run = Run(place, *arguments, f"run.resume={foreign}")
    assert run.wait() == [2, 2] and f"{foreign} was saved from another configuration" in run.output, run.output
    samples(place)
    run = Run(place, *arguments, "optimization.max_micro_batch=4", ranks=1, stage=1, samples=place)
    assert run.wait() == [0], run.output
    assert f"{foreign} was saved from another configuration (optimization.lr: 0.003 -> 0.001)" in run.output
    assert "step_00000002 (step 2)" in run.output and "1 ranks x 4 x 2 accumulated" in run.output
    assert samples(place) == {step: images for step, images in first.items() if step >= 2} and len(first) == 4
    assert not CheckpointReader(foreign).manifest["fingerprint"].startswith("00000000")  # it was saved anew


@pytest.mark.parametrize(
    ("number", "whom"),
    [(signal.SIGTERM, "runner"), pytest.param(signal.SIGUSR1, "launcher", marks=[pytest.mark.slow, pytest.mark.nightly])],
)
def test_a_signal_to_the_deepspeed_launcher_saves_and_leaves_no_orphans(number: int, whom: str, place: Path) -> None:
    """`deepspeed` dies of it and leaves its children: the ranks notice that it is gone."""
    command = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", "2", "--master_port", str(free_port())]
    command += ["--module", "ijepa_ds.train", "--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY]
    log = place / "log.txt"
    with log.open("w") as file:
        runner = subprocess.Popen(
            [*command, "optimization.steps=5000", "run.checkpoint_every=5", "run.keep_last=1"],
            cwd=place,
            env=environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
    try:
        wait_until(lambda: UNDER_WAY in log.read_text() or runner.poll() is not None, 400, log.read_text)
        assert runner.poll() is None, log.read_text()
        (launcher,) = (int(pid) for pid in Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split())
        os.kill(runner.pid if whom == "runner" else launcher, number)
        wait_until(lambda: runner.poll() is not None and not processes_of(place), 200, log.read_text)
        assert "stopped by SIGHUP (its launcher or terminal is gone)" in log.read_text(), log.read_text()
        assert len(list_steps(place / "out")) == 1
    finally:
        kill_all_of(place)
        runner.wait()
