"""`ijepa-ds supervise` over a stand-in for the launcher and its ranks: when it starts again, when not, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ijepa_ds.cluster.supervised import LEAVING, SAVING, TERMINATING, Ending, Phase
from tests.processes import is_alive, kill_all_of, modules_after, take_all_signals
from tests.waiting import limit, wait_until

SUPERVISE = [sys.executable, "-m", "ijepa_ds.cli", "supervise"]
STAND_IN = str(Path(__file__).parents[1] / "stand_in.py")


class Case:
    """A run directory and the supervisor of it."""

    def __init__(self, folder: Path) -> None:
        self.run = folder / "run"
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *deeds: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        command = [*SUPERVISE, "--run", str(self.run), "--backoff", "0.1", *options]
        process = subprocess.Popen(
            [*command, "--", sys.executable, STAND_IN, str(self.run), *deeds],
            cwd=self.run.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=take_all_signals,
        )
        self.processes.append(process)
        return process

    def whole(self, *deeds: str, options: tuple[str, ...] = ()) -> tuple[int, str]:
        """Exit code and messages."""
        process = self.start(*deeds, options=options)
        _, errors = process.communicate(timeout=limit(300))
        return process.returncode, errors

    def calls(self) -> int:
        file = self.run / "calls"
        return len(file.read_text().splitlines()) if file.exists() else 0

    def ranks(self) -> list[int]:
        return [int(path.name[5:]) for path in self.run.glob("rank-*")]

    def notes(self) -> list[dict]:
        return [json.loads(line) for line in (self.run / "restarts.jsonl").read_text().splitlines()]


def wait_for(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, 100, what, pause=0.02)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
    for pid in made.ranks():
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    kill_all_of(tmp_path)
    for process in made.processes:
        process.communicate()


def test_it_starts_again_until_the_run_is_complete(case: Case) -> None:
    code, errors = case.whole("save:2+exit:1", "save:4+kill:9", "save:6+exit:247", "save:8+exit:0", "save:9+complete+exit:70")
    assert code == 0 and case.calls() == 5
    lines = case.notes()
    assert [(line["event"], line["restart"], line["step"]) for line in lines] == [("restart", n, 2 * n) for n in (1, 2, 3, 4)]
    reasons = ("an unexpected error", "it was killed by SIGKILL", "a process of it was killed by SIGKILL", "is not reached")
    assert all(text in line["reason"] for text, line in zip(reasons, lines, strict=True))
    assert "restart 2 of 100 in 0.1 s, from that of step 4" in errors and "complete after 4 restarts" in errors


def test_the_marker_of_an_earlier_length_completes_nothing(case: Case) -> None:
    """As when a complete run is extended, and its launcher ends with 0 before a rank has begun."""
    case.run.mkdir()
    (case.run / "completed.json").write_text("{}")
    code, errors = case.whole("exit:0", "save:2+complete+exit:0")
    assert code == 0 and case.calls() == 2 and "complete after 1 restarts" in errors, errors


def test_it_gives_up_when_no_checkpoint_is_newer_and_waits_longer_before(case: Case) -> None:
    code, errors = case.whole("save:5+exit:70", "exit:70", "exit:70", "save:6+exit:70", "exit:70")
    assert code == 70 and "3 attempts in a row saved no newer checkpoint" in errors and "that of step 6" in errors
    assert [line["wait_seconds"] for line in case.notes()] == [0.1, 0.1, 0.2, 0.1, 0.1, 0.2, 0.0]
    assert case.notes()[-1]["event"] == "gave up" and case.calls() == 7
    starts = [float(line.split()[0]) for line in (case.run / "calls").read_text().splitlines()]
    assert all(later - earlier >= 0.1 for earlier, later in zip(starts, starts[1:], strict=False))


def test_a_checkpoint_with_a_file_missing_is_no_progress(case: Case) -> None:
    (case.run / "checkpoints" / "step_00000009").mkdir(parents=True)
    assert case.whole("exit:1", options=("--fruitless", "2"))[0] == 70
    assert [line["step"] for line in case.notes()] == [0, 0]


def test_the_limit_of_restarts(case: Case) -> None:
    code, errors = case.whole("save:1+exit:1", "save:2+exit:1", "save:3+exit:1", options=("--restarts", "1"))
    assert code == 70 and case.calls() == 2 and "1 restarts were made" in errors


@pytest.mark.parametrize("given", ["exit:2", "stop+exit:75", "exit:241", "kill:15", "exit:143"])
def test_what_the_user_must_mend_or_has_stopped_is_not_started_again(given: str, case: Case) -> None:
    code, errors = case.whole(given)
    assert code == (2 if given == "exit:2" else 75) and case.calls() == 1 and "not started again" in errors
    assert not (case.run / "restarts.jsonl").exists()


@pytest.mark.parametrize(("deeds", "code"), [("note:0+note:2+note:70+exit:1", 2), ("stop+note:75+note:75+exit:1", 75)])
def test_what_a_rank_noted_counts_where_the_launcher_exits_with_1(deeds: str, code: int, case: Case) -> None:
    """As torchrun does after any failure."""
    assert case.whole(deeds)[0] == code and case.calls() == 1


def test_a_code_of_the_launcher_or_of_another_attempt_counts_before_a_note(case: Case) -> None:
    code, errors = case.whole("save:1+note:70+exit:1", "save:2+exit:1", "save:3+note:2+exit:75", "complete")
    assert code == 0 and case.calls() == 4, errors
    reasons = [line["reason"] for line in case.notes()]
    assert [reason.partition(": ")[2] for reason in reasons] == [
        "a rank died or hangs",
        "an unexpected error",
        "storage or network failed",
    ]


def test_a_fault_of_storage_or_network_is_started_again(case: Case) -> None:
    case.run.mkdir()
    (case.run / "stopped.json").write_text("{}")  # of an earlier stop
    code, errors = case.whole("save:1+exit:75", "save:2+complete+exit:0")
    assert code == 0 and case.calls() == 2 and "storage or network failed" in errors


def test_the_marker_of_an_earlier_end_does_not_excuse_a_failure(case: Case) -> None:
    case.run.mkdir()
    (case.run / "completed.json").write_text("{}")
    assert case.whole("exit:1", "complete+exit:0")[0] == 0  # failed; then: nothing to do
    assert case.calls() == 2


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_lets_the_ranks_save_and_ends_everything(name: str, case: Case) -> None:
    process = case.start("save:3+launch:train")
    wait_for(case.ranks, "a rank")
    process.send_signal(signal.Signals[name])
    _, errors = process.communicate(timeout=limit(100))
    assert process.returncode == 75 and f"stopped by {name}; the newest checkpoint is that of step 4" in errors
    assert (case.run / "asked").read_text() == name and case.calls() == 1
    assert not any(is_alive(pid) for pid in case.ranks())


def test_a_stop_that_could_not_save_is_not_called_one(case: Case) -> None:
    process = case.start("save:3+launch:refuse")
    wait_for(case.ranks, "a rank")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=limit(100))
    assert process.returncode == 70 and "perhaps not saved; newest checkpoint: that of step 3" in errors


def test_a_stop_before_anything_trains_ends_everything_at_once(case: Case) -> None:
    process = case.start("launch:hang")
    wait_for(case.ranks, "a rank")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=limit(100)) == 75 and case.calls() == 1
    assert not any(is_alive(pid) for pid in case.ranks())


def test_an_impatient_second_interrupt_kills(case: Case) -> None:
    process = case.start("launch:deaf")
    wait_for(case.ranks, "a rank")
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None and "SIGINT: asking the run" in process.stderr.readline()
    time.sleep(2.2)  # an earlier one counts as the same Ctrl-C
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=limit(100))
    assert "interrupted again" in errors and process.returncode == 75
    assert not any(is_alive(pid) for pid in case.ranks())


def test_a_stop_while_it_waits_for_a_restart(case: Case) -> None:
    process = case.start("exit:1", options=("--backoff", "100"))
    wait_for((case.run / "restarts.jsonl").exists, "a restart")
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=limit(100)) == 75 and case.calls() == 1


def test_what_a_dead_launcher_leaves_may_save_and_is_gone_before_the_restart(case: Case) -> None:
    code, _ = case.whole("save:3+leave:train", "complete")
    (rank,) = case.ranks()
    assert code == 0 and (case.run / "asked").read_text() == "SIGTERM" and not is_alive(rank)
    assert case.notes()[0]["step"] == 4  # saved by the rank after its launcher had ended


def test_a_killed_supervisor_asks_its_command_to_stop(case: Case) -> None:
    process = case.start("train")
    wait_for(case.ranks, "a rank")
    process.kill()
    (rank,) = case.ranks()
    wait_for(lambda: not is_alive(rank), "the end of the rank")
    assert (case.run / "asked").read_text() == "SIGTERM"


def test_ranks_may_save_before_anything_is_terminated() -> None:
    ending = Ending(100.0)
    assert ending.signal(100, saving=True, patience=0) == 0 and ending.phase is Phase.ASKED
    assert ending.signal(99 + SAVING, saving=True, patience=0) == 0  # still saving
    assert ending.signal(99.5 + SAVING, saving=False, patience=LEAVING) == 0 and ending.phase is Phase.QUIET
    assert ending.signal(99 + SAVING + LEAVING, saving=False, patience=LEAVING) == 0
    at = 99.5 + SAVING + LEAVING
    assert ending.signal(at, saving=False, patience=LEAVING) == signal.SIGTERM and ending.phase is Phase.TERMINATED
    assert ending.signal(at + TERMINATING, saving=False, patience=LEAVING) == 0  # SIGTERM is sent once
    assert ending.signal(at + TERMINATING + 1, saving=False, patience=LEAVING) == signal.SIGKILL


def test_ranks_that_never_finish_saving_are_ended() -> None:
    ending = Ending(0.0)
    assert ending.signal(SAVING, saving=True, patience=LEAVING) == 0 and ending.phase is Phase.QUIET
    assert ending.signal(SAVING + LEAVING, saving=True, patience=LEAVING) == signal.SIGTERM
    assert ending.signal(SAVING + LEAVING + TERMINATING + 1, saving=True, patience=LEAVING) == signal.SIGKILL


def test_a_request_before_any_rank_trains_terminates_at_once_and_a_rank_that_starts_late_may_save() -> None:
    ending = Ending(0.0)
    assert ending.signal(0, saving=False, patience=0) == signal.SIGTERM
    assert ending.signal(1, saving=True, patience=LEAVING) == 0 and ending.phase is Phase.ASKED
    assert ending.signal(2 + TERMINATING, saving=False, patience=LEAVING) == 0 and ending.phase is Phase.QUIET


def supervised(*words: str, where: Path) -> tuple[int, str]:
    done = subprocess.run([*SUPERVISE, *words], cwd=where, capture_output=True, text=True, timeout=limit(300), check=False)
    return done.returncode, done.stderr


def test_wrong_command_lines_are_refused_before_anything_starts(tmp_path: Path) -> None:
    text = "run: {dir: out}\nmodel: {name: tiny}\noptimization: {batch_size: 8, steps: 6, warmup_steps: 1}\n"
    (tmp_path / "run.yaml").write_text(text)
    trainer = (sys.executable, "-m", "ijepa_ds.train", "--config", "run.yaml", "--deepspeed_config", "x.json")
    code, errors = supervised("--restarts", "-1", "--fruitless", "0", where=tmp_path)
    assert code == 2
    assert all(text in errors for text in ("--restarts -1: expected", "--fruitless 0: expected", "command is missing"))
    for words, text in [
        (("--", "bash", "train.sh"), "name the run directory with --run"),
        (("--run", "x", "--", "no-such-program"), "cannot start no-such-program: No such file"),
        (("--", *trainer, "data.source=images", "optimization.lrr=1"), "lrr"),
        (("--", *trainer, "data.source=images", "run.resume=out/checkpoints/step_00000001"), "run.resume=auto"),
    ]:
        code, errors = supervised(*words, where=tmp_path)
        assert code == 2 and text in errors and "Traceback" not in errors, errors
    assert not (tmp_path / "out").exists()


def test_it_loads_nothing_heavy(repository: Path) -> None:
    words = ["ijepa_ds.train", "--config", str(repository / "configs/in1k_vith14.yaml"), "data.source=images", "run.dir=x"]
    loaded = modules_after(f"from ijepa_ds.cluster import supervise; supervise.run_dir({words})")
    assert "ijepa_ds.config.published" in loaded and not loaded & {"torch", "numpy", "deepspeed", "safetensors"}


def test_the_script_in_launch(case: Case, repository: Path) -> None:
    command = ["bash", str(repository / "launch" / "run.sh"), "--run", str(case.run), "--backoff", "0"]
    environment = os.environ | {"VENV": sys.prefix, "PYTHONPATH": str(repository)}
    done = subprocess.run(
        [*command, "--", "python", STAND_IN, str(case.run), "save:1+exit:1", "complete"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=limit(300),
        check=False,
    )
    assert done.returncode == 0 and case.calls() == 2, done.stderr
