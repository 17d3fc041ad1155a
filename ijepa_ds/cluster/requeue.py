"""Whether a SLURM job is queued again: `python -m ijepa_ds.cluster.requeue RUN_DIR --code N --signal NAME --stopped 0|1`.

`launch/slurm.sbatch` calls it after srun has ended, or when the time limit ends the job before. It imports neither torch nor
NumPy. Each decision is a line in the run's `restarts.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ijepa_ds.checkpoint.folder import newest_whole
from ijepa_ds.cluster.supervise import LOG
from ijepa_ds.durable import append_lines
from ijepa_ds.exits import LOST, REQUESTED, STOPPED, USER_ERROR

FRUITLESS = 3  # attempts in a row without a newer checkpoint, as `ijepa-ds supervise`
_NOT_SET = ("", "None", "Unknown", "N/A", "(null)")
_PREEMPTION = 3600.0  # seconds to wait for an announced preemption
_TERMINATED = 128 + 15  # exit code of ranks that somebody ended


@dataclass(frozen=True)
class End:
    """How an attempt ended.

    Attributes:
        code: srun's exit code; None: the ranks still run, and SLURM is ending the job.
        signal: that the batch script received: USR1, TERM, or empty.
        stop: reason in a new `stopped.json`; empty: the ranks recorded no request to stop.
    """

    code: int | None
    signal: str
    stop: str


def forbids(job: Mapping[str, str], end: End) -> str:
    """Why the job is not queued again, from what SLURM says of it and how the attempt ended; empty: it may be.

    Args:
        job: `scontrol show job`, by field.
        end: of the attempt.
    """
    state, reason = job.get("JobState", "unknown"), job.get("Reason", "")
    by_limit = end.signal == "USR1" or (not end.signal and "SIGUSR1" in end.stop)  # after SIGTERM the ranks get SIGUSR1 too
    if state in ("PENDING", "REQUEUED"):
        return "SLURM has queued it again"
    timed_out = state == "TIMEOUT" or (state == "COMPLETING" and reason == "TimeLimit")
    if state != "RUNNING" and not timed_out:
        return f"SLURM ends the job, which was cancelled or preempted, and queues it again where it should (state {state})"
    if end.code is None and not timed_out:
        return "the ranks still run"
    if end.code == USER_ERROR:
        return "correct what the message above names (exit code 2)"
    if by_limit:
        return ""
    if timed_out:
        return "the time limit came without a signal before it: sbatch --signal=B:USR1@300"
    if end.stop or end.signal:
        return f"it was asked to stop ({end.stop or 'SIG' + end.signal})"
    code = end.code or 0
    if code not in (LOST, STOPPED) and (code <= 128 or code == _TERMINATED):
        return f"it failed with code {code}, see the message above"
    return ""


def fruitless(lines: list[str], job: str, step: int) -> int:
    """Attempts in a row of this job that saved no newer checkpoint, with the one that has just ended.

    Args:
        lines: of `restarts.jsonl`.
        job: SLURM's id. Another submission begins anew.
        step: of the newest checkpoint now.
    """
    last: dict[str, Any] | None = None
    for line in lines:
        with suppress(ValueError):  # a line that was cut short
            row = json.loads(line)
            last = row if isinstance(row, dict) and row.get("job") == job else last
    if last is None:
        return int(step == 0)
    return int(last["fruitless"]) + 1 if step <= int(last["step"]) else 0


def read_job(job: str) -> dict[str, str]:
    """What `scontrol show job` says; empty if it says nothing."""
    done = subprocess.run(["scontrol", "show", "job", "-o", job], capture_output=True, text=True, check=False)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


def wait_for_preemption(job: str) -> dict[str, str]:
    """The job's state once an announced preemption has come; at once without one.

    In a partition's GraceTime, SLURM signals the ranks and lets the job run on. Whether it then queues it again is the
    partition's PreemptMode. A job that ends before is not queued again by SLURM.
    """
    end, told = time.monotonic() + _PREEMPTION, False
    while True:
        found = read_job(job)
        announced = found.get("JobState") == "RUNNING" and found.get("PreemptTime", "") not in _NOT_SET
        if not announced or time.monotonic() > end:
            return found
        if not told:
            _say("saved; waiting for the preemption that SLURM has announced")
            told = True
        time.sleep(2)


def _say(text: str) -> None:
    print(f"slurm.sbatch: {text}", flush=True)


def _note(run: Path, job: str, event: str, step: int, count: int, why: str) -> None:
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, "job": job, "step": step, "fruitless": count}
    with suppress(OSError):  # `append_lines` logs the reason
        run.mkdir(parents=True, exist_ok=True)
    append_lines(run / LOG, [json.dumps(line | {"reason": why})])


def requeue(run: Path, job: str, end: End) -> bool:
    """Queue the job again if it may be; prints the decision."""
    why = forbids(read_job(job) if end.code is None else wait_for_preemption(job), end)
    if why:
        _say(f"not queued again: {why}")
        return False
    log = run / LOG
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    step, reason = newest_whole(run), f"code {end.code}, signal {end.signal or 'none'}, {end.stop or 'no request to stop'}"
    count = fruitless(lines, job, step)
    if count >= FRUITLESS:
        _note(run, job, "gave up", step, count, reason)
        _say(f"not queued again: {count} attempts in a row saved no newer checkpoint (the newest is of step {step})")
        return False
    _note(run, job, "requeue", step, count, reason)
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    if done.returncode:
        _say(f"cannot be queued again (was the job submitted with --no-requeue?): {(done.stderr + done.stdout).strip()}")
        return False
    _say(f"queued again from the checkpoint of step {step} ({reason})")
    return True


def main() -> int:
    """The command; exit code 0: queued again."""
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.cluster.requeue")
    parser.add_argument("run", type=Path)
    parser.add_argument("--code", type=int, help="srun's exit code; without it the ranks still run")
    parser.add_argument("--signal", default="")
    parser.add_argument("--stopped", type=int, default=0, help=f"1: {REQUESTED} is of this attempt")
    args = parser.parse_args()
    stop = ""
    if args.stopped:
        with suppress(OSError, ValueError):
            stop = str(json.loads((args.run / REQUESTED).read_text(encoding="utf-8"))["reason"])
    return 0 if requeue(args.run, os.environ["SLURM_JOB_ID"], End(args.code, args.signal, stop)) else 1


if __name__ == "__main__":
    sys.exit(main())
