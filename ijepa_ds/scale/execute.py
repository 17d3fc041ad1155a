"""Runs the rungs of a ladder one after the other: an ordinary run in its own folder, then an evaluation.

Every attempt writes two lines to the ladder's `attempts.jsonl`, at its begin and its end: wall time, and processor
time of all processes on this machine. An attempt without an end (this process was killed) makes the rung's hours
unknown; the results report this.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ijepa_ds import config
from ijepa_ds.cluster import processes
from ijepa_ds.cluster.supervised import Inbox, Supervised
from ijepa_ds.durable import append_lines
from ijepa_ds.exits import COMPLETED, STOPPED
from ijepa_ds.scale.ladder import Evaluation, Ladder
from ijepa_ds.scale.protocol import other_settings, wanted_settings
from ijepa_ds.scale.rung import Rung

logger = logging.getLogger(__name__)
ATTEMPTS = "attempts.jsonl"
RESULT = "eval/result.json"  # below a rung's folder


def check_folders(path: Path, rungs: Sequence[Rung]) -> list[str]:
    """Problems with the rungs' launch commands and folders, such as a folder with a run of another configuration."""
    problems = []
    for rung in rungs:
        if rung.command is None:
            problems.append(f"{path}: {rung.name}: no ladder.launch says how it is started; --plan needs none")
        owner = rung.folder / "config.yaml"
        if not owner.is_file():
            continue
        try:
            before = config.stored(owner)
            lines = config.difference(before, config.resolve_auto(rung.cfg, before.model.precision))
        except ValueError as error:
            lines = [str(error)]
        if lines:
            problems.append(f"{path}: {rung.name}: {rung.folder} holds a run of another configuration: {'; '.join(lines)}")
    return problems


def run_ladder(ladder: Ladder, rungs: Sequence[Rung]) -> int:
    """Train and score the unfinished rungs of a ladder; return 0 or the first failing exit code.

    Raises:
        ValueError: folders in use by other runs, all at once.
    """
    problems = check_folders(ladder.path, rungs)
    if ladder.evaluation and rungs:
        try:
            wanted_settings(rungs[0].cfg, ladder.evaluation)
        except ValueError as error:
            problems.append(f"{ladder.path}: eval.options: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    ladder.out.mkdir(parents=True, exist_ok=True)
    processes.adopt_orphans()
    inbox = Inbox()
    try:
        for number, rung in enumerate(rungs, start=1):
            code = _run_rung(ladder, rung, f"rung {number} of {len(rungs)}, {rung.name}", inbox)
            if code:
                return code
    finally:
        inbox.release()
    return 0


def _run_rung(ladder: Ladder, rung: Rung, title: str, inbox: Inbox) -> int:
    assert rung.command  # `check_folders`
    if done(rung):
        logger.info("%s: has all its %d steps", title, rung.steps)
    else:
        logger.info("%s: %d steps of %d in %s", title, rung.steps, rung.cfg.optimization.batch_size, rung.folder)
        code = _attempt(ladder.out, rung.name, "train", rung.command, inbox)
        if code or not done(rung):
            logger.error("%s: ended with code %d before its last step; the same command continues it", title, code)
            return code or STOPPED
    if ladder.evaluation is None or scored(rung, ladder.evaluation):
        return 0
    command = evaluation_command(rung, ladder.evaluation)
    code = _attempt(ladder.out, rung.name, "eval", command, inbox)
    if code:
        logger.error("%s: its evaluation ended with code %d: %s", title, code, " ".join(command))
    elif not scored(rung, ladder.evaluation):
        path, score = rung.folder / RESULT, ladder.evaluation.score
        known = ", ".join(_read(path).get("scores", {}))
        raise ValueError(f"{ladder.path}: eval.score: {path} has no '{score}' (it has: {known})")
    return code


def done(rung: Rung) -> bool:
    """Whether the rung has made its last step."""
    return _read(rung.folder / COMPLETED).get("steps") == rung.steps


def scored(rung: Rung, evaluation: Evaluation) -> bool:
    """Whether the rung's last step was evaluated on the ladder's images with its options."""
    result = _read(rung.folder / RESULT)
    try:
        same = (result["data"]["train"], result["data"]["test"]) == (evaluation.train, evaluation.test)
        if not same or result["checkpoint"]["step"] != rung.steps or evaluation.score not in result["scores"]:
            return False
        other = other_settings(result["settings"], wanted_settings(rung.cfg, evaluation))
    except KeyError:
        return False
    if other:
        logger.info("%s: was evaluated with other settings (%s)", rung.name, ", ".join(sorted(other)))
    return not other


def _read(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def evaluation_command(rung: Rung, evaluation: Evaluation) -> tuple[str, ...]:
    """Command line of `ijepa-ds eval all` for a rung's newest checkpoint."""
    words = (sys.executable, "-m", "ijepa_ds.cli", "eval", "all", "--checkpoint", str(rung.folder))
    folders = ("--train", evaluation.train, "--test", evaluation.test, "--out", str((rung.folder / RESULT).parent))
    return (*words, *folders, *evaluation.options)


def _attempt(out: Path, name: str, what: str, command: Sequence[str], inbox: Inbox) -> int:
    """Run a command and record begin, wall time and processor time."""
    facts: dict[str, Any] = {"rung": name, "what": what, "began": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    append_lines(out / ATTEMPTS, [json.dumps(facts)])
    before, start = _cpu_seconds(), time.monotonic()
    try:
        code = Supervised(command, inbox, lambda number: logger.info("asking %s to save and stop", name)).run()
    except OSError as error:
        raise ValueError(f"{name}: cannot start {command[0]}: {error.strerror}") from error
    facts |= {"seconds": time.monotonic() - start, "cpu_seconds": _cpu_seconds() - before, "code": code}
    append_lines(out / ATTEMPTS, [json.dumps(facts)])
    return code


def _cpu_seconds() -> float:
    """Processor time of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
