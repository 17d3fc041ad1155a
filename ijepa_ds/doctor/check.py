"""`python -m ijepa_ds.train ... --check`: what a start would refuse, found without ranks, engine or files.

`ijepa-ds doctor` shows the same rows, and adds those of the hosts.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ijepa_ds import config, machine
from ijepa_ds.cluster import hosts
from ijepa_ds.cluster.expected import hostfile_warning
from ijepa_ds.config import BatchPlan, Config, ConfigError, deepspeed_json, published
from ijepa_ds.config.fresh import fresh_problems
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.data.classes import describe_classes
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import expand, open_source
from ijepa_ds.doctor.probe import existing, list_gpus, smallest_memory
from ijepa_ds.doctor.rows import FAIL, HERE, OK, WARN, Row, table
from ijepa_ds.errors import CheckpointError, StorageError, UserError
from ijepa_ds.evals.dense import layouts
from ijepa_ds.exits import USER_ERROR
from ijepa_ds.model.work import work_of
from ijepa_ds.plan.hardware import GIB
from ijepa_ds.plan.memory import memory_of
from ijepa_ds.plan.report import RESERVE
from ijepa_ds.plan.spread import spread_of

_SECONDS = 3.0  # for the images of one source: a start scans all of them, a check as many as it can in this time
_REFUSED = (ValueError, OSError, CheckpointError, StorageError)


class _OutOfTimeError(Exception):
    """The time for the images of a source is over."""


@dataclass
class Checked:
    """What was read of a run, as far as it can be read, and the rows."""

    cfg: Config | None = None
    batch: BatchPlan | None = None
    ds_config: dict[str, Any] | None = None
    rows: list[Row] = field(default_factory=list)

    def note(self, check: str, verdict: str, found: str, todo: str = "") -> None:
        """Add a row."""
        self.rows.append(Row(HERE, check, verdict, found, todo))

    def attempt(self, check: str, work: Callable[[], None]) -> None:
        """Call `work`; what it refuses becomes a row a line."""
        try:
            work()
        except _REFUSED as error:
            for line in error.problems if isinstance(error, ConfigError) else [str(error)]:
                self.note(check, FAIL, line)


GOOD = "nothing found that would stop the run. Nothing was written; the same command without --check starts it"


def check_start(args: argparse.Namespace, world: int, good: str = GOOD) -> int:
    """Check a training command and print the rows; 0 if it would start, else `exits.USER_ERROR`.

    Args:
        args: with `config`, `deepspeed_config` and `overrides`.
        world: number of ranks.
        good: last line if there is no problem.
    """
    found = read(args, world)
    found.attempt("accelerator", lambda: _accelerator(found))
    files(found, args)
    if found.cfg and found.batch and found.ds_config:
        run = found.cfg, found.batch, found.ds_config
        found.attempt("memory", lambda: _memory(found, *run, world))
    print(table(found.rows))
    failed = sum(row.verdict == FAIL for row in found.rows)
    if failed:
        print(f"\n{failed} problem{'s' if failed > 1 else ''}: the run would not start. Nothing was written")
        return USER_ERROR
    warned = sum(row.verdict == WARN for row in found.rows)
    print(f"\n{f'{warned} warning' + ('s' if warned > 1 else '') + ' above; ' if warned else ''}{good}")
    return 0


def read(args: argparse.Namespace, world: int) -> Checked:
    """Read both files for `world` ranks; the problems of both are rows."""
    found = Checked()
    words = [str(args.config), str(args.deepspeed_config), *args.overrides]
    found.attempt("command line", lambda: hosts.check_words(words))

    def read_config() -> None:
        found.cfg, notes = published.load_any(args.config, args.overrides, world_size=world)
        for note in notes:
            found.note("configuration", OK, f"{args.config}: {note}")

    def cut_batch() -> None:
        assert found.cfg
        batch = config.check(found.cfg, world)
        new = not (Path(found.cfg.run.dir) / "config.yaml").exists()
        if new and (problems := fresh_problems(found.cfg, world)):
            raise ConfigError([str(problem) for problem in problems])
        found.batch = batch
        text = f"{batch.batch_size} images = {world} ranks x {batch.micro_batch} x {batch.accumulation} accumulated"
        found.note("configuration", OK, text)

    def read_json() -> None:
        if found.cfg and found.batch:
            found.ds_config = deepspeed_json.load_deepspeed(args.deepspeed_config, found.cfg, found.batch)
        else:  # the batch is not known: its own problems
            deepspeed_json.read_deepspeed(args.deepspeed_config, BatchPlan(1, 1, world), 1.0, "float32")

    found.attempt("configuration", read_config)
    if found.cfg:
        found.attempt("configuration", cut_batch)
    found.attempt("DeepSpeed JSON", read_json)
    return found


def files(found: Checked, args: argparse.Namespace) -> None:
    """Check what the configuration names on this machine: images, run directory, weights."""
    if found.cfg is None:  # its other problems are rows already
        source = published.peek_source(args.config, args.overrides)
        if source and not os.path.exists(source) and not expand(source):
            found.note("images", FAIL, f"data.source: {source!r} does not exist")
        return
    cfg = found.cfg
    found.attempt("images", lambda: _images(found, cfg))
    found.attempt("run directory", lambda: _run_directory(found, cfg))
    if cfg.eval.every:
        found.attempt("evaluation", lambda: _evaluation(found, cfg))
    if found.batch:
        from ijepa_ds.masks import sampler, thin  # late: they import PyTorch

        made = sampler.build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
        if text := thin.warning(made.planner, cfg.grid):
            found.note("masks", WARN, text)


def _accelerator(found: Checked) -> None:
    """DeepSpeed's choice of a device, against the devices that are here."""
    named = os.environ.get("DS_ACCELERATOR")
    if named == "cuda" and not list_gpus():
        todo = "unset it, or export DS_ACCELERATOR=cpu"
        found.note("accelerator", FAIL, "the environment has DS_ACCELERATOR=cuda, but nvidia-smi finds no GPU here", todo)
    if text := hostfile_warning():
        found.note("hostfile", WARN, text)


def open_within(source: str, options: ScanOptions, seconds: float = _SECONDS) -> ImageIndex | None:
    """The index of a source; None if its scan takes longer than `seconds`."""
    end = time.monotonic() + seconds

    def beat() -> None:
        if time.monotonic() > end:
            raise _OutOfTimeError

    try:
        return open_source(source, replace(options, beat=beat))
    except _OutOfTimeError:
        return None


def _images(found: Checked, cfg: Config) -> None:
    index = open_within(cfg.data.source, ScanOptions.of(cfg.data))
    if index is None:
        text = f"{cfg.data.source}: not all images were seen in {_SECONDS:g} s; a start scans all of them"
        found.note("images", OK, f"{text} (`ijepa-ds data index` does it once for all runs)")
        return
    batch = cfg.optimization.batch_size
    if len(index) < batch:
        raise UserError(
            f"data.source: {cfg.data.source} has {len(index)} images, fewer than one global batch "
            f"(optimization.batch_size: {batch})"
        )
    epoch = len(index) // batch
    steps = Schedule.of(cfg, epoch).total_steps
    found.note(
        "images", OK, f"{len(index):,} in {cfg.data.source}, {describe_classes(index)}; {steps:,} steps, {epoch:,} an epoch"
    )
    if index.bad:
        found.note("images", WARN, f"{len(index.bad)} of them are unreadable and replaced by others", "ijepa-ds data check")


def _run_directory(found: Checked, cfg: Config) -> None:
    out = Path(cfg.run.dir)
    _check_rights(out)
    _check_lock(out)
    if not (out / "config.yaml").is_file() and not (out / "checkpoints").is_dir() and cfg.run.resume in ("auto", "never"):
        if cfg.model.init_from or cfg.run.branch_from:
            _weights(found, cfg)
        else:
            found.note("run directory", OK, f"{out}: a fresh start")
        return
    from ijepa_ds.checkpoint import run_dir  # late: they import PyTorch
    from ijepa_ds.checkpoint.reader import CheckpointReader

    owner = out / "config.yaml"
    if owner.is_file():  # `model.precision: auto` keeps what the run has chosen
        before = config.load(owner, []).model.precision
        cfg = config.resolve_auto(cfg, before) if before != config.AUTO else cfg
    said: list[str] = []
    reader = run_dir.find_start(
        cfg, run_dir.look(cfg), lambda path: CheckpointReader(path, verify=False), lambda text, *more: said.append(text % more)
    )
    for text in said:
        found.note("checkpoints", WARN, text)
    if reader:
        found.note("run directory", OK, f"continues {reader.folder} (its checksums are compared at the start)")
    else:
        found.note("run directory", OK, f"{out}: no checkpoint yet, a fresh start")


def _weights(found: Checked, cfg: Config) -> None:
    if cfg.model.init_from:
        from ijepa_ds.weights.start import open_start, resolve_position_grid

        start = open_start(resolve_position_grid(cfg), verify=False)
        found.note("weights", OK, f"a fresh start from {start.source.path}")
        for note in start.notes:
            found.note("weights", OK, note)
    if cfg.run.branch_from:
        from ijepa_ds.checkpoint.reader import CheckpointReader

        found.note("run directory", OK, f"branches off {CheckpointReader(Path(cfg.run.branch_from), verify=False).folder}")


def _check_rights(out: Path) -> None:
    """Refuse a directory that cannot be made or written; creates nothing."""
    folder = existing(out)
    if not os.access(folder, os.W_OK | os.X_OK):
        what = "cannot be written" if folder == out else f"cannot be made: {folder} cannot be written"
        raise UserError(f"run.dir: {out} {what}: choose another run.dir, or make it writable")


def _check_lock(out: Path) -> None:
    """Refuse a directory in which a live process trains."""
    path = out / ".lock"
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{out} is in use by another run (process {handle.read().strip()}): wait for its end, or stop it"
            ) from error
        except OSError:
            return  # no locks on this file system: a start warns


def _evaluation(found: Checked, cfg: Config) -> None:
    if cfg.eval.task in layouts.USUAL:
        found.note("evaluation", OK, layouts.listed(cfg.eval, cfg.data.arrays is not None))
        return
    counts: Sequence[str] = ()
    for key, source in (("eval.train", cfg.eval.train), ("eval.test", cfg.eval.test)):
        try:
            index = open_within(str(source), ScanOptions.of(cfg.data), _SECONDS / 3)
        except UserError as error:
            raise UserError(str(error).replace("data.source", key, 1)) from error
        if index is not None and not index.classes:
            raise UserError(
                f"{key}: {source!r} has no class folders; expected one folder a class, such as dog/1.jpg and cat/1.jpg"
            )
        counts = (*counts, f"{key}: {'not all were seen' if index is None else f'{len(index):,} images'}")
    found.note("evaluation", OK, "; ".join(counts))


def _memory(found: Checked, cfg: Config, batch: BatchPlan, ds_config: dict[str, Any], world: int) -> None:
    """Compare the planned memory of a rank with what this machine has, as if all of its ranks were here."""
    gpus = list_gpus()
    here = min(world, len(gpus) or world)
    work = work_of(config.resolve_auto(cfg, "bfloat16" if gpus else "float32"))
    need = memory_of(work, spread_of(ds_config, batch, max(1, world // here), here)).peak / GIB
    have = smallest_memory(gpus) or machine.memory_bytes() / GIB / (here if gpus else world)
    fits = need <= (1 - RESERVE) * have
    todo = "" if fits else "ijepa-ds plan --search proposes another way (ZeRO stage, micro-batch, checkpointing, offload)"
    found.note("memory", OK if fits else WARN, f"{need:.2f} GiB of a rank's {have:.1f} GiB here (plan)", todo)
