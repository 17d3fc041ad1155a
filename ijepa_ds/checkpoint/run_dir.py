"""The run directory: its owner, the files that describe the run, the checkpoint that a start continues from."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ijepa_ds import config
from ijepa_ds.checkpoint.folder import find_steps, folder_name
from ijepa_ds.checkpoint.reader import CheckpointReader, newest
from ijepa_ds.checkpoint.run_lock import refusal
from ijepa_ds.config import Config
from ijepa_ds.config.schedules import Schedule, steps_per_epoch
from ijepa_ds.durable import write_text
from ijepa_ds.errors import CheckpointError, UserError
from ijepa_ds.exits import COMPLETED, REQUESTED
from ijepa_ds.versions import versions

logger = logging.getLogger(__name__)
_TRACES = (".lock", "logs/rank_*.log", "images.index", "images.scan", "config.yaml", "deepspeed.json", "environment.json")
_ROOM = 1 << 16  # bytes that must be free at the start, for a first event file


def look(cfg: Config) -> list[int]:
    """The steps of the checkpoints that a run should have in its directory (`folder.find_steps`).

    Raises:
        ValueError: the directory belongs to a run of another configuration; or it has checkpoints although `run.resume` is
            `never`; or it has newer ones than `run.resume` names.
    """
    run_dir = Path(cfg.run.dir)
    owner = run_dir / "config.yaml"
    if owner.is_file():
        _check_owner(cfg, owner)
    steps = find_steps(run_dir)
    if steps and cfg.run.resume == "never":
        raise UserError(f"run.resume is never, but {run_dir} has checkpoints: choose another run.dir or run.resume=auto")
    if cfg.run.resume not in ("auto", "never"):
        named = Path(cfg.run.resume)
        newer = [step for step in steps if (run_dir / "checkpoints" / folder_name(step)).resolve() != named.resolve()]
        if newer and max(newer) > CheckpointReader(named, verify=False).manifest["step"]:
            raise UserError(
                f"run.resume names {cfg.run.resume}, but {run_dir} has a newer checkpoint (step {max(newer)}): set "
                "run.resume=auto to continue that, or another run.dir to branch off"
            )
    return steps


def find_start(
    cfg: Config,
    steps: list[int],
    open_checkpoint: Callable[[Path], CheckpointReader] = CheckpointReader,
    say: Callable[..., None] = logger.error,
) -> CheckpointReader | None:
    """The checkpoint that this run continues from, or None for a fresh start; nothing is written.

    Args:
        cfg: the run.
        steps: result of `look`.
        open_checkpoint: opens and validates one, or raises CheckpointError.
        say: receives messages about checkpoints that are passed over.

    Raises:
        CheckpointError: the named checkpoint, or every existing one, is broken or of another configuration.
        ValueError: the run's length was changed, and the checkpoint was saved in a cool-down.
    """

    def open_ours(folder: Path) -> CheckpointReader:
        reader = open_checkpoint(folder)
        if reader.manifest.get("fingerprint") != config.fingerprint(cfg):
            what = _what_differs(reader, cfg)
            gate = " with model.gate=gelu" if "model.gate: gelu" in what else ""
            raise CheckpointError(
                f"{reader.folder} was saved from another configuration ({what}): use the config.yaml of its run{gate}"
            )
        _check_past(reader, cfg)
        return reader

    if cfg.run.resume not in ("auto", "never"):
        return open_ours(Path(cfg.run.resume))
    found = newest(Path(cfg.run.dir), steps, open_ours, say)
    return open_ours(Path(cfg.run.branch_from)) if found is None and cfg.run.branch_from else found


def _what_differs(reader: CheckpointReader, cfg: Config) -> str:
    """The keys in which a checkpoint's configuration differs; its fingerprint if the configuration cannot be read."""
    try:
        lines = config.difference(config.from_text(reader.manifest["config"], str(reader.folder)), cfg)
    except (KeyError, TypeError, AttributeError, ValueError):  # of another version, or damaged
        lines = []
    return "; ".join(lines) or f"fingerprint {reader.manifest.get('fingerprint')}, this one is {config.fingerprint(cfg)}"


def _check_past(reader: CheckpointReader, cfg: Config) -> None:
    """Check that a new length of the run, allowed with `wsd`, leaves the schedule of all steps done unchanged.

    Raises:
        ValueError: the checkpoint was saved after the start of the cool-down, of the old length or of the new one.
    """
    step, o = reader.manifest["step"], cfg.optimization
    if o.schedule != "wsd":
        return
    before = config.from_text(reader.manifest["config"], str(reader.folder))
    old, new = config.flatten(before), config.flatten(cfg)
    changed = [f"{key}: {old[key]} -> {new[key]}" for key in config.LENGTH if old[key] != new[key]]
    if not changed:
        return
    epoch = steps_per_epoch(reader.manifest["images"], o.batch_size)
    common = Schedule.of(before, epoch).same_until(Schedule.of(cfg, epoch))
    if step > common:
        raise UserError(
            f"{reader.folder} was saved at step {step}, but with the new length ({'; '.join(changed)}) only the first {common} "
            "steps are the same: the cool-down begins before the checkpoint. Start from an earlier checkpoint, with "
            "run.branch_from and a new run.dir (run.keep_every keeps earlier ones)"
        )


def _check_owner(cfg: Config, owner: Path) -> None:
    before = config.resolve_auto(config.stored(owner), cfg.model.precision)  # a hand-written file may say auto
    if config.fingerprint(before) != config.fingerprint(cfg):
        changes = "\n".join("  " + line for line in config.difference(before, cfg))
        raise UserError(
            f"{owner.parent} belongs to a run of another configuration:\n{changes}\n"
            "choose another run.dir, or restore that configuration"
        )


class Traces:
    """What a start leaves in a run directory that has no run yet, to take it away again when the start is refused."""

    def __init__(self, run_dir: Path) -> None:
        """Note what is there before the start."""
        self._run_dir = run_dir
        self._new_folders = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
        self._begins = not (run_dir / "config.yaml").exists() and not (run_dir / "checkpoints").exists()
        self._before = set(self._files())

    def _files(self) -> list[Path]:
        return [path for pattern in _TRACES for path in self._run_dir.glob(pattern)]

    def remove(self) -> None:
        """Remove the files and folders that came since; those of others stay, and so does everything of an earlier start."""
        if not self._begins:
            return
        with contextlib.suppress(OSError):
            for path in (path for path in self._files() if path not in self._before):
                path.unlink(missing_ok=True)
        for folder in (self._run_dir / "checkpoints", self._run_dir / "logs", *self._new_folders):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def check_writable(run_dir: Path) -> None:
    """Refuse a directory in which checkpoints, events or logs could not be written later.

    Raises:
        ValueError: names every such folder and file with the reason.
    """
    problems = []
    for folder in (run_dir, run_dir / "checkpoints"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-") as probe:
                probe.write(bytes(_ROOM))
                probe.flush()
                os.fsync(probe.fileno())
        except OSError as error:
            problems.append((folder, error))
    for path in sorted(run_dir.glob("*.jsonl")):  # logs of an earlier start, to which this one appends
        try:
            path.open("ab").close()
        except OSError as error:
            problems.append((path, error))
    if problems:
        raise refusal(problems)


def write_facts(cfg: Config, ds_config: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write the resolved configuration, versions and revision into the run directory (rank 0)."""
    run_dir = Path(cfg.run.dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    config.save_resolved(cfg, run_dir / "config.yaml")
    (run_dir / "deepspeed.json").write_text(json.dumps(ds_config, indent=2) + "\n", encoding="utf-8")
    (run_dir / "environment.json").write_text(json.dumps(versions() | facts, indent=2) + "\n", encoding="utf-8")


def mark_stopped(run_dir: Path, reason: str) -> None:
    """Write the file that tells a supervisor that the run was stopped on request; an error is logged."""
    try:
        write_text(run_dir / REQUESTED, json.dumps({"reason": reason}) + "\n")
    except OSError as error:
        logger.warning("%s cannot be written (%s): a supervisor may start the run again", run_dir / REQUESTED, error.strerror)


def mark_completed(run_dir: Path, facts: dict[str, Any]) -> None:
    """Write the file that marks a run as completed; one that is there gets a new time, which tells a supervisor."""
    if (run_dir / COMPLETED).is_file():
        os.utime(run_dir / COMPLETED)
        return
    aside = run_dir / f".{COMPLETED}.partial"
    aside.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    aside.rename(run_dir / COMPLETED)
