"""Prepares a run before its first step: ranks, run directory, images, checkpoint, engine."""

from __future__ import annotations

import logging
import shlex
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from ijepa_ds import __version__, config
from ijepa_ds.checkpoint import restore, run_dir, run_lock, writer
from ijepa_ds.checkpoint.folder import folder_name
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.cluster import rank_log
from ijepa_ds.cluster.expected import hostfile_warning
from ijepa_ds.cluster.judge import READ, SCAN
from ijepa_ds.cluster.leave import Limit
from ijepa_ds.cluster.meeting import meet
from ijepa_ds.cluster.watch import Watch
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.config.schedules import Schedule
from ijepa_ds.data.classes import describe_classes
from ijepa_ds.data.image_order import plan_identity
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.distributed.agreement import agree
from ijepa_ds.distributed.exchange import broadcast_object, decide, host_barrier, max_over_ranks
from ijepa_ds.distributed.world import barrier, initialise_distributed
from ijepa_ds.errors import CheckpointError, NetworkError, UserError
from ijepa_ds.exits import STOPPED
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.masks.thin import warning
from ijepa_ds.training import eval_images, live_dense, precision
from ijepa_ds.training.bad_samples import BadSamples, found_before
from ijepa_ds.training.continues import check_continues
from ijepa_ds.training.ending import last_words
from ijepa_ds.training.engine import Engine
from ijepa_ds.training.images import find_images, share
from ijepa_ds.training.live_eval import LiveEval
from ijepa_ds.weights.start import Start, open_start, resolve_position_grid

logger = logging.getLogger(__name__)
_NAMED = 8.0  # seconds in which the watch finds and names a rank whose end broke the connection, and ends this process


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that training needs."""

    cfg: Config
    plan: BatchPlan
    engine: Engine
    folder: ImageIndex
    schedule: Schedule
    start: int  # steps already done
    window: tuple[float, ...] = ()  # losses since the last point before them: sum over images, number of images
    rank: int
    bad: BadSamples
    facts: dict[str, Any]  # written into every manifest beside the step
    lock: IO[str] | None  # held by rank 0
    watch: Watch
    live: LiveEval | None  # the run's own evaluation

    def owes_evaluation(self) -> bool:
        """Whether the step that the run continues from has to be evaluated first; the same on every rank."""
        if self.live is None or not self.start or not self.live.due(self.start, self.schedule.total_steps):
            return False
        own = (Path(self.cfg.run.dir) / "checkpoints" / folder_name(self.start)).is_dir()  # not that of another run
        return max_over_ranks(self.rank == 0 and own and not self.live.knows(self.start)) > 0

    def is_finished(self) -> bool:
        """Whether nothing is left to do; if so, log it and mark the run as completed."""
        if self.start < self.schedule.total_steps or self.owes_evaluation():
            return False
        out = Path(self.cfg.run.dir)
        if self.rank == 0:
            logger.info("%s has all its %d steps already: nothing to do", out, self.schedule.total_steps)
            run_dir.mark_completed(out, {"steps": self.schedule.total_steps})
            logger.info("%s", last_words(self.cfg, self.schedule.total_steps))
        return True


def prepare(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, watch: Watch) -> Run:
    """Join the other ranks, find the images and the checkpoint, build the engine.

    Args:
        cfg: the run; `model.precision` may be `auto`.
        ds_config: from `deepspeed_json.load_deepspeed`.
        plan: how the batch is cut.
        rank: this rank.
        watch: watches for hangs from here on.

    Raises:
        ValueError, CheckpointError: something the user has to correct; the same on every rank.
    """
    device = _join(cfg, rank, plan.world_size, watch)
    traces = run_dir.Traces(Path(cfg.run.dir))
    try:
        return _prepare(cfg, ds_config, plan, rank, watch, device)
    except (UserError, CheckpointError):
        if rank == 0:
            traces.remove()
        raise


def _prepare(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, watch: Watch, device: torch.device) -> Run:
    """The same for ranks that have met."""
    agree(lambda: _check_same_folder(cfg))
    lock = agree(lambda: run_lock.lock(Path(cfg.run.dir)) if rank == 0 else None)
    agree(lambda: run_dir.check_writable(Path(cfg.run.dir)))
    agree(lambda: rank_log.open_log(Path(cfg.run.dir), rank, plan.world_size))
    cfg, ds_config = precision.resolve(cfg, ds_config, rank, device)
    cfg = broadcast_object(agree(lambda: resolve_position_grid(cfg) if rank == 0 else None))
    folder = find_images(cfg, rank, watch)
    schedule = agree(lambda: _schedule(cfg, folder))
    watch.beat("images found")
    reader = _find_start(cfg, rank, watch)
    if reader:
        agree(lambda: check_continues(reader, cfg.data, folder))
    bad = agree(lambda: BadSamples(cfg.data, folder, Path(cfg.run.dir), rank, found_before(reader.manifest if reader else {})))
    watch.beat("checkpoint found")
    start = _start(cfg, rank) if cfg.model.init_from and not reader else None
    engine = Engine(cfg, ds_config, device, start)
    watch.beat("engine built")
    if reader:
        agree(lambda: restore.load(engine.layout, engine.ema, reader, partial(watch.alive, READ)))
    done = reader.manifest["step"] if reader else 0
    live = _live_eval(cfg, engine, rank, done, watch) if cfg.eval.every else None
    facts = {"world_size": plan.world_size, "images": len(folder)}
    agree(lambda: run_dir.write_facts(cfg, ds_config, facts) if rank == 0 else None)
    if rank == 0:
        writer.sweep(Path(cfg.run.dir))
        _announce(cfg, plan, engine, folder, schedule, _beginning(reader, start), watch.where())
    barrier()
    return Run(
        cfg=cfg,
        plan=plan,
        engine=engine,
        folder=folder,
        schedule=schedule,
        start=done,
        window=tuple(reader.manifest.get("loss_window", ())) if reader else (),
        rank=rank,
        bad=bad,
        facts=_facts(cfg, plan, folder) if rank == 0 else {},
        lock=lock,
        watch=watch,
        live=live,
    )


def _join(cfg: Config, rank: int, world_size: int, watch: Watch) -> torch.device:
    """Meet the other ranks, watch them, and create the process group; `run.start_timeout` bounds each of the waits."""
    limit = Limit(cfg.run.start_timeout, "run.start_timeout", STOPPED)
    watch.expect(Limit(), "the configuration")  # `meet` has a limit of its own
    watch.follow(meet(rank, world_size, limit.seconds), rank, limit)
    try:
        device = initialise_distributed(limit.seconds)
    except NetworkError:
        time.sleep(_NAMED)
        raise
    host_barrier()
    watch.expect(Limit(cfg.run.hang_timeout), "ranks have met")
    watch.doing("opening the run directory")
    return device


def _check_same_folder(cfg: Config) -> None:
    """Refuse a run directory that a variable of the environment makes another one on another host."""
    different = decide((cfg.run.dir, socket.gethostname()), _other_folders)
    if different:
        raise UserError(f"run.dir is {different}: write the path itself")


def _other_folders(seen: list[tuple[str, str]]) -> str:
    """The hosts that have another run directory than rank 0, in words; `seen` has folder and host of each rank."""
    first, host_of_first = seen[0]
    others = {host: f"{folder} for rank {rank} on {host}" for rank, (folder, host) in enumerate(seen) if folder != first}
    return f"{first} for rank 0 on {host_of_first}, but {'; '.join(others.values())}" if others else ""


def _find_start(cfg: Config, rank: int, watch: Watch) -> CheckpointReader | None:
    """The newest valid checkpoint: rank 0 lists them, and each rank verifies a share of the files."""
    steps = broadcast_object(agree(lambda: run_dir.look(cfg) if rank == 0 else None))

    def report(*text: object) -> None:
        if rank == 0:
            logger.error(*text)

    return run_dir.find_start(cfg, steps, partial(restore.open_together, beat=partial(watch.alive, READ)), report)


def _live_eval(cfg: Config, engine: Engine, rank: int, done: int, watch: Watch) -> LiveEval:
    if cfg.eval.task != "knn":
        return live_dense.begin(cfg, engine, share(), done, lambda: watch.alive(SCAN))
    agree(lambda: eval_images.find(cfg, lambda: watch.alive(SCAN)) if rank == 0 else None)
    own = share()
    return agree(lambda: LiveEval(cfg, engine, eval_images.load(cfg, own), *own, done))


def _schedule(cfg: Config, folder: ImageIndex) -> Schedule:
    steps_per_epoch = len(folder) // cfg.optimization.batch_size
    if steps_per_epoch < 1:
        raise UserError(
            f"data.source: {cfg.data.source} has {len(folder)} images, fewer than one global batch "
            f"(optimization.batch_size: {cfg.optimization.batch_size})"
        )
    return Schedule.of(cfg, steps_per_epoch)


def _start(cfg: Config, rank: int) -> Start:
    """The weights that `model.init_from` names: rank 0 chooses and verifies them, the others open the same ones."""
    first = agree(lambda: open_start(cfg) if rank == 0 else None)
    path = broadcast_object(str(first.source.path) if first else None)
    start = agree(lambda: first or open_start(cfg, path, verify=False))
    different = decide((start.digest(), socket.gethostname()), _other_weights)
    if different:
        raise UserError(f"model.init_from: {path} differs between hosts: not that of rank 0 for {different}")
    if rank == 0:
        for note in start.notes:
            logger.info("model.init_from: %s", note)
    return start


def _other_weights(seen: list[tuple[str, str]]) -> str:
    """The hosts whose ranks have other weights than rank 0; `seen` has digest and host of each rank."""
    return ", ".join(sorted({f"host {host}" for digest, host in seen if digest != seen[0][0]}))


def _facts(cfg: Config, plan: BatchPlan, folder: ImageIndex) -> dict[str, Any]:
    return {
        "micro_batch": plan.micro_batch,
        "images": len(folder),
        "plan": plan_identity(cfg.data, folder),
        "fingerprint": config.fingerprint(cfg),
        "config": config.to_text(cfg),
        "versions": run_dir.versions(),
    }


def _announce(
    cfg: Config,
    plan: BatchPlan,
    engine: Engine,
    folder: ImageIndex,
    schedule: Schedule,
    begin: str,
    where: str,
) -> None:
    """Five lines on the terminal, details in the log of rank 0, warnings in both."""
    model, (encoder, predictor) = cfg.model, engine.num_parameters.values()
    batch = f"{plan.world_size} ranks x {plan.micro_batch} x {plan.accumulation} accumulated"
    of_encoder = f"{encoder / 1e6:,.1f} M parameters" if encoder >= 1e5 else f"{encoder:,} parameters"
    logger.info(
        "%s",
        f"ijepa_ds {__version__}: {model.name}/{model.patch_size} ({of_encoder}), ZeRO-{engine.stage}, "
        f"{plan.world_size} x {engine.device.type}, {model.precision}; {begin}\n"
        f"  images         {len(folder):,} from {cfg.data.source}, {describe_classes(folder)}\n"
        f"  steps          {schedule.total_steps:,} of {len(folder) // cfg.optimization.batch_size:,} an epoch, each "
        f"{cfg.optimization.batch_size:,} images = {batch}\n"
        f"  run directory  {cfg.run.dir} (details: logs/rank_00000.log in it)\n"
        f"  curves         tensorboard --logdir {shlex.quote(cfg.run.dir)}",
    )
    logger.debug("%s", engine.describe())
    logger.debug("predictor %s parameters; %d CPU threads a rank; %s", f"{predictor:,}", torch.get_num_threads(), where)
    sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
    for text in filter(None, (engine.note, warning(sampler.planner, cfg.grid), hostfile_warning())):
        logger.warning("%s", text)


def _beginning(reader: CheckpointReader | None, start: Start | None) -> str:
    if reader:
        return f"continuing {reader.folder} (step {reader.manifest['step']})"
    return f"a fresh start from the weights of {start.source.path}" if start else "a fresh start"
