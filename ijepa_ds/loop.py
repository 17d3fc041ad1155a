"""The training loop and what must be in place before it starts."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ijepa_ds import checkpoint, config, run_dir
from ijepa_ds.checkpoint_reader import CheckpointReader
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.data.index import ImageFolder
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.transforms import normalize
from ijepa_ds.engine import Engine, barrier, gather_objects, initialise_distributed, shut_down_distributed
from ijepa_ds.masks import build_sampler
from ijepa_ds.reporter import Reporter
from ijepa_ds.schedules import Schedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class State:
    """Everything a run needs, ready to train."""

    cfg: Config
    plan: BatchPlan
    engine: Engine
    folder: ImageFolder
    schedule: Schedule
    start: int  # steps already done
    rank: int


def prepare(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int) -> State:
    """Find the data and the checkpoint, join the other ranks, build the engine.

    Raises:
        ValueError, OSError, CheckpointError: something the user has to mend.
    """
    reader = run_dir.find_start(cfg)
    folder = ImageFolder.scan(cfg.data.source, cfg.data.max_pixels)
    steps_per_epoch = len(folder) // cfg.optimization.batch_size
    if steps_per_epoch < 1:
        raise ValueError(
            f"data.source: {cfg.data.source} has {len(folder)} images, fewer than one global batch "
            f"(optimization.batch_size: {cfg.optimization.batch_size})"
        )
    schedule = Schedule.of(cfg, steps_per_epoch)
    device = initialise_distributed()
    _check_same_data(folder)
    engine = Engine(cfg, ds_config, device)
    if reader:
        _check_continues(reader, folder)
        checkpoint.load(engine, reader)
    if rank == 0:
        run_dir.write_facts(cfg, ds_config, {"world_size": plan.world_size, "images": len(folder)})
        logger.info(_banner(cfg, plan, engine, folder, schedule, reader))
    barrier()
    start = reader.manifest["step"] if reader else 0
    return State(cfg=cfg, plan=plan, engine=engine, folder=folder, schedule=schedule, start=start, rank=rank)


def train(state: State) -> None:
    """Steps `state.start` ... to the end of the schedule."""
    cfg, plan, engine, schedule, rank = state.cfg, state.plan, state.engine, state.schedule, state.rank
    out = Path(cfg.run.dir)
    sampler = build_sampler(
        cfg.masks, cfg.data.crop_size // cfg.model.patch_size, cfg.run.seed, cfg.optimization.batch_size
    )
    reporter = Reporter(cfg, engine, schedule, state.start, rank)
    batches = _batches(state)
    mark = reporter.clock.mark
    try:
        for step in range(state.start, schedule.total_steps):
            for micro in range(plan.accumulation):
                pixels = next(batches)  # uint8 [B, S, S, 3]
                mark("data_wait")
                images = normalize(pixels, cfg.data.mean, cfg.data.std, engine.compute_dtype)
                position = (micro * plan.world_size + rank) * plan.micro_batch
                masks = sampler.sample(step, position, plan.micro_batch, engine.device)
                mark("masks")
                output = engine.forward(images, masks, mark)
                engine.backward(output.loss)
                mark("backward")
                reporter.add(output.loss / plan.accumulation)
            applied = engine.optimizer_step(schedule.lr(step), schedule.weight_decay(step))
            mark("optimizer")
            if applied:
                engine.ema.update(schedule.momentum(step))
            mark("ema")
            reporter.after_step(step, output, masks, pixels)
            done = step + 1
            if done % cfg.run.checkpoint_every == 0 or done == schedule.total_steps:
                checkpoint.save(engine, out, done, _facts(state, done, batches.bad), cfg.run.keep_last)
                mark("checkpoint")
    finally:
        batches.close()
        reporter.close()
    if rank == 0:
        run_dir.mark_completed(out, {"steps": schedule.total_steps, "loss": reporter.last_loss})
    shut_down_distributed()


def _batches(state: State) -> ImageBatches:
    return ImageBatches(
        state.cfg.data,
        state.folder,
        seed=state.cfg.run.seed,
        batch_size=state.cfg.optimization.batch_size,
        micro_batch=state.plan.micro_batch,
        rank=state.rank,
        world_size=state.plan.world_size,
        accumulation=state.plan.accumulation,
        start_step=state.start,
        device=state.engine.device,
    )


def _facts(state: State, step: int, bad: list[tuple[str, str]]) -> dict[str, Any]:
    cfg = state.cfg
    return {
        "samples_seen": step * cfg.optimization.batch_size,
        "micro_batch": state.plan.micro_batch,
        "images": len(state.folder),
        "data_checksum": state.folder.checksum(),
        "bad_samples": bad,
        "fingerprint": config.fingerprint(cfg),
        "config": config.to_text(cfg),
        "versions": run_dir.versions(),
    }


def _check_continues(reader: CheckpointReader, folder: ImageFolder) -> None:
    """The order of samples is a function of the list of images: another list would repeat some and skip others."""
    saved, now = reader.manifest.get("data_checksum"), folder.checksum()
    if saved != now:
        raise ValueError(
            f"data.source has other images than when {reader.folder} was saved ({reader.manifest.get('images')} then, "
            f"{len(folder)} now, checksum {saved} then, {now} now): restore them, or start anew in another run.dir"
        )


def _check_same_data(folder: ImageFolder) -> None:
    """All ranks must see the same files: a rank with another list would train on other samples, silently."""
    seen = gather_objects((folder.checksum(), len(folder), socket.gethostname()))
    different = [f"rank {rank} on {host}: {n} images" for rank, (sum_, n, host) in enumerate(seen) if sum_ != seen[0][0]]
    if different:
        raise ValueError(
            f"data.source is not the same everywhere: rank 0 on {seen[0][2]} has {seen[0][1]} images, but "
            + "; ".join(different)
        )


def _banner(
    cfg: Config, plan: BatchPlan, engine: Engine, folder: ImageFolder, schedule: Schedule, reader: CheckpointReader | None
) -> str:
    start = f"continuing {reader.folder} (step {reader.manifest['step']})" if reader else "a fresh start"
    threads = torch.get_num_threads()
    return (
        f"ijepa_ds: {engine.describe()}\n"
        f"  {len(folder):,} images from {cfg.data.source}; global batch {cfg.optimization.batch_size} = "
        f"{plan.world_size} ranks x {plan.micro_batch} x {plan.accumulation} accumulated; {threads} CPU threads a rank\n"
        f"  {schedule.total_steps:,} steps of {len(folder) // cfg.optimization.batch_size:,} an epoch; {start}\n"
        f"  run directory {cfg.run.dir}   (tensorboard --logdir {cfg.run.dir})"
    )
