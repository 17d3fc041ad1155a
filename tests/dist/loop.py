"""Runs of the real training loop on the ranks of the pool, recorded step by step. Called on every rank at once."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from ijepa_ds.config import Config
from ijepa_ds.config.schedules import Schedule
from tests.dist import jobs

IMAGES = 22  # a batch of 8 straddles two epochs
PEAK = 1e9  # FLOP/s of a product, instead of a measurement


def config_of(place: str, run: str, resume: str | None = None, every: int = 1000, **settings: Any) -> Config:
    """`jobs.tiny_config` on the images in `place`, with the run directory `run`.

    Args:
        place: folder with a folder `images`.
        run: run directory.
        resume: checkpoint to continue; None: the newest one in `run`, if any.
        every: steps between checkpoints.
        settings: of `tiny_config`; `data`: keys of DataConfig.
    """
    data = settings.pop("data", {})
    cfg = jobs.tiny_config(**settings)
    options = replace(cfg.run, dir=run, resume=resume or "auto", checkpoint_every=every, picture_every=0)
    images = replace(cfg.data, source=f"{place}/images", loader="torchvision", **data)
    return replace(cfg, run=options, data=images)


def schedule_of(cfg: Config) -> Schedule:
    """The schedule of a run on the images."""
    return Schedule.of(cfg, IMAGES // cfg.optimization.batch_size)


class Recorder:
    """Records what the loop passes to the engine and what it gets back."""

    def __init__(self, run: Any, stop: Any, until: int, broken: int | None, inputs: bool) -> None:
        """Wrap the engine of `run`.

        Args:
            run: from `start.prepare`.
            stop: receives SIGTERM in step `until - 1`, so that the loop saves and ends after it.
            until: number of steps after which the run stops; 0: none.
            broken: 0-based step in which the loss of the last rank's last micro-batch is not a number.
            inputs: whether to keep images and masks.
        """
        from deepspeed import comm as dist

        self.steps: list[dict[str, Any]] = []
        engine, forward, step = run.engine, run.engine.forward, run.engine.step
        last = dist.get_rank() == dist.get_world_size() - 1
        micros: list[dict[str, Any]] = []

        def recorded_forward(images: Any, masks: Any, *more: Any) -> Any:
            number, micro = run.start + len(self.steps), len(micros)
            if number == until - 1:
                stop.request(signal.SIGTERM)
            output = forward(images, masks, *more)
            if last and number == broken and micro == run.plan.accumulation - 1:
                output = output._replace(loss=output.loss * float("nan"))
            seen = {"images": images.float().cpu().numpy().copy()} if inputs else {}
            if inputs:
                seen |= {"context": masks.context.cpu().numpy(), "targets": masks.targets.cpu().numpy()}
            micros.append({"loss": float(output.loss.detach())} | seen)
            return output

        def recorded_step(settings: Any, mark: Any) -> bool:
            applied = step(settings, mark)
            norm = engine.gradient_norm()
            self.steps.append({"micros": list(micros), "settings": tuple(settings), "applied": applied, "norm": norm})
            micros.clear()
            return applied

        engine.forward, engine.step = recorded_forward, recorded_step


def train(
    place: str,
    run: str,
    stage: int,
    until: int | None = None,
    extra: dict[str, Any] | None = None,
    broken: int | None = None,
    inputs: bool = False,
    backend: str = "inductor",
    **settings: Any,
) -> dict[str, Any]:
    """`start.prepare` and `loop.train`; what each step did, and the checkpoints.

    Args:
        place, run, settings: see `config_of`.
        stage: of ZeRO.
        until: number of steps after which the run stops; None: at the end of its schedules (`optimization.steps`).
        extra: further keys of `zero_optimization`.
        broken, inputs: see `Recorder`.
        backend: of torch.compile, with `model.compile`; `aot_eager` traces both passes and compiles nothing.
    """
    from deepspeed import comm as dist

    from ijepa_ds.cluster.stop import Stopped, StopRequests
    from ijepa_ds.cluster.watch import Watch
    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.training import loop, start

    initialise_distributed()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    cfg = config_of(place, run, **settings)
    ds_config, plan = jobs.spread(cfg, stage, world_size, extra)
    watch, stop = Watch(), StopRequests()
    try:
        compiler = mock.patch("ijepa_ds.model.compiling.BACKEND", backend)
        with compiler, mock.patch("ijepa_ds.cluster.rank_log.open_log"):  # this process goes on to other runs
            prepared = start.prepare(cfg, ds_config, plan, rank, watch)
        recorder = Recorder(prepared, stop, until or 0, broken, inputs)
        with suppress(Stopped), mock.patch("ijepa_ds.training.reporter.measured_peak", lambda *_: PEAK):
            loop.train(prepared, stop)
    finally:
        watch.close()
    if prepared.lock:
        prepared.lock.close()
    saved = sorted(str(path) for path in (Path(run) / "checkpoints").glob("step_*"))
    return {
        "steps": recorder.steps,
        "losses": [float(np.mean([micro["loss"] for micro in step["micros"]])) for step in recorder.steps],
        "saved": saved,
        "folder": saved[-1],
        "kind": prepared.engine.layout.kind,
        "note": prepared.engine.note,
        "target": jobs.gathered_target(prepared.engine),
    }
