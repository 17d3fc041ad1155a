"""What the ranks of the pool run. Each function is called on every rank at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ijepa_ds.config import (
    BatchPlan,
    Config,
    DataConfig,
    MasksConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizationConfig,
    PredictorConfig,
    RunConfig,
    TargetsConfig,
    at_step,
)
from ijepa_ds.config.schedules import StepSettings
from ijepa_ds.masks.sampler import Masks, build_sampler

REPOSITORY = Path(__file__).parents[2]


def tiny_config(
    precision: str = "float32",
    checkpointing: bool = False,
    model: dict[str, Any] | None = None,
    early_steps: int = 0,
    targets: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    masks: dict[str, Any] | None = None,
    **optimization: Any,
) -> Config:
    """A model small enough for every test: 4 x 4 ... 6 x 6 patches, a few thousand parameters."""
    settings: dict[str, Any] = dict(batch_size=8, steps=60, warmup_steps=6, lr=1e-3, ema=(0.99, 1.0))
    return Config(
        run=RunConfig(dir="unused-run", seed=3),
        data=DataConfig(source="unused", crop_size=48, early_crop_size=32 if early_steps else None, early_steps=early_steps),
        model=ModelConfig(
            **{
                **{"name": "tiny", "width": 48, "depth": 2, "heads": 3},
                **{"predictor": PredictorConfig(depth=2, width=24, heads=3), **(model or {})},
            },
            patch_size=8,
            precision=precision,
            activation_checkpointing=checkpointing,
        ),
        masks=MasksConfig(**{"sampler": "unbiased", "min_keep": 1, **(masks or {})}),
        targets=TargetsConfig(**(targets or {})),
        objective=ObjectiveConfig(**(objective or {})),
        optimization=OptimizationConfig(**(settings | optimization)),
    )


def shared_buffers() -> list[str]:
    """Names that these ranks' collectives have left in shared memory."""
    import os

    from ijepa_ds.distributed.world import barrier, initialise_distributed

    initialise_distributed()
    barrier()
    return [path.name for path in Path("/dev/shm").glob(f"deepspeed_*_{os.environ['MASTER_PORT']}_*")]


def batch(cfg: Config, step: int, first: int, count: int) -> tuple[Tensor, Masks]:
    """Positions [first, first + count) of the global batch of a step: images and masks, functions of the position."""
    cfg = at_step(cfg, step)
    size = cfg.data.crop_size
    images = np.stack([np.random.default_rng((step, first + i)).standard_normal((3, size, size)) for i in range(count)])
    grid = size // cfg.model.patch_size
    sampler = build_sampler(cfg.masks, grid, cfg.run.seed, cfg.optimization.batch_size)
    return torch.from_numpy(images).float(), sampler.sample(step, first, count, torch.device("cpu"))


def spread(cfg: Config, stage: int, world_size: int, extra: dict[str, Any] | None = None) -> tuple[dict[str, Any], BatchPlan]:
    """The shipped DeepSpeed JSON of a stage, checked as a run's is."""
    import json
    import tempfile

    from ijepa_ds import config
    from ijepa_ds.config.deepspeed_json import load_deepspeed

    plan = config.check(cfg, world_size)
    settings = json.loads((REPOSITORY / "ds_configs" / f"zero{stage}.json").read_text())
    settings["zero_optimization"].update(extra or {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ds.json"
        path.write_text(json.dumps(settings))
        return load_deepspeed(path, cfg, plan), plan


def make_engine(cfg: Config, stage: int, world_size: int, extra: dict[str, Any] | None = None, start: Any = None) -> Any:
    """An engine through the same code as a run's."""
    from deepspeed.utils import groups

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.training.engine import Engine

    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None  # hpZ's, made once a process: these ranks have many lives
    ds_config, plan = spread(cfg, stage, world_size, extra)
    device = initialise_distributed()
    return Engine(cfg, ds_config, device, start), plan


def settle(engine: Any, cfg: Config, plan: BatchPlan, steps: int) -> None:
    """First steps before a measurement: DeepSpeed allocates and learns the order of modules in them."""
    from deepspeed import comm as dist

    for step in range(steps):
        images, masks = _moved(engine, *batch(cfg, step, dist.get_rank() * plan.micro_batch, plan.micro_batch))
        engine.backward(engine.forward(images, masks).loss)
        engine.step(StepSettings(1e-3, 0.05, 0.99), lambda part: None)


def save_again(stage: int, resume: str, folder: str, **optimization: Any) -> str:
    """Load a checkpoint and save it at once; the new checkpoint."""
    from deepspeed import comm as dist

    from ijepa_ds.checkpoint import restore
    from ijepa_ds.distributed.world import initialise_distributed

    initialise_distributed()
    engine, _ = make_engine(tiny_config(**optimization), stage, dist.get_world_size())
    reader = restore.open_together(Path(resume))
    restore.load(engine.layout, engine.ema, reader)
    return _save(engine, Path(folder), reader.manifest["step"])


def _moved(engine: Any, images: Tensor, masks: Masks) -> tuple[Tensor, Masks]:
    """A batch where the engine computes, in the type it computes in."""
    device = engine.device
    return images.to(device, engine.compute_dtype), Masks(masks.context.to(device), masks.targets.to(device))


def bench_saves(stage: int, place: str, saves: int) -> dict[str, Any]:
    """What `ijepa-ds bench checkpoint` measures on a rank, with the images in `place`."""
    from dataclasses import replace

    from deepspeed import comm as dist

    from ijepa_ds.bench import checkpoint_rank
    from ijepa_ds.distributed.world import initialise_distributed

    initialise_distributed()
    cfg = tiny_config()
    cfg = replace(cfg, run=replace(cfg.run, dir=f"{place}/run"), data=replace(cfg.data, source=f"{place}/images"))
    return checkpoint_rank.measure(cfg, *spread(cfg, stage, dist.get_world_size()), dist.get_rank(), saves)


def bench_verb(verb: str, place: str, steps: int) -> dict[str, Any]:
    """What `ijepa-ds bench VERB` measures on a rank, with the images in `place`; `train` leaves a trace there."""
    import importlib
    import os
    from dataclasses import replace
    from unittest import mock

    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed

    initialise_distributed()
    cfg = tiny_config()
    cfg = replace(cfg, run=replace(cfg.run, dir=f"{place}/out", log_every=1), data=replace(cfg.data, source=f"{place}/images"))
    module = importlib.import_module(f"ijepa_ds.bench.{verb}_rank")
    trace = {"IJEPA_DS_BENCH_TRACE": f"{place}/trace.json"}
    # this process goes on to other jobs: its output must not end in a run's log
    with mock.patch("ijepa_ds.cluster.rank_log.open_log"), mock.patch.dict(os.environ, trace):
        return module.measure(cfg, *spread(cfg, 2, dist.get_world_size()), dist.get_rank(), steps)


def start_values(stage: int) -> dict[str, np.ndarray]:
    """The target encoder of an engine that has not taken a step."""
    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed

    initialise_distributed()
    return gathered_target(make_engine(tiny_config(), stage, dist.get_world_size())[0])


def bench_state(place: str, precision: str) -> dict[str, Any]:
    """What `ijepa-ds bench state` measures on a rank, with the images in `place`."""
    from dataclasses import replace

    from deepspeed import comm as dist

    from ijepa_ds.bench import state_rank
    from ijepa_ds.distributed.world import initialise_distributed

    initialise_distributed()
    cfg = tiny_config(precision, model={"width": 192})
    cfg = replace(cfg, data=replace(cfg.data, source=place))
    return state_rank.measure(cfg, *spread(cfg, 3, dist.get_world_size()), dist.get_rank(), 0b1111)


def _save(engine: Any, run_dir: Path, steps: int) -> str:
    """Save as a run does; the checkpoint's folder."""
    from ijepa_ds.checkpoint.folder import folder_name
    from ijepa_ds.checkpoint.saver import Saver

    saver = Saver(engine.layout, engine.ema, run_dir, every=steps, keep_last=2)
    saver.start(steps, {})
    assert saver.finish()
    return str(run_dir / "checkpoints" / folder_name(steps))


def start_from(stage: int, path: str, folder: str, precision: str = "float32") -> dict[str, Any]:
    """An engine that starts from the weights at `path`: the loss of its first batch, its target, what a checkpoint holds."""
    from dataclasses import replace

    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.weights.start import open_start

    initialise_distributed()
    cfg = tiny_config(precision)
    cfg = replace(cfg, model=replace(cfg.model, init_from=path))
    engine, plan = make_engine(cfg, stage, dist.get_world_size(), start=open_start(cfg))
    images, masks = batch(cfg, 0, dist.get_rank() * plan.micro_batch, plan.micro_batch)
    with torch.no_grad():
        loss = float(engine.forward(*_moved(engine, images, masks)).loss)
    return {"loss": loss, "target": gathered_target(engine), "folder": _save(engine, Path(folder), 1)}


def gathered_target(engine: Any) -> dict[str, np.ndarray]:
    """The target encoder's weights as the forward pass sees them, whole, on every rank."""
    import deepspeed

    from ijepa_ds.model.flat import parts_of

    result = {}
    for name, parameter in engine.module.target_encoder.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
            values = parameter.detach().flatten().float().cpu().numpy().copy()
        for part in parts_of(name, parameter):
            result[part.name] = values[part.start : part.start + part.numel].reshape(part.shape)
    return result


def waits_of_a_step(stage: int, precision: str) -> dict[str, list[str]]:
    """Where the parts of one warm step make the host wait for the device, or would on a GPU."""
    from ijepa_ds.distributed.world import initialise_distributed
    from tests.dist.waits import waits

    initialise_distributed()
    cfg = tiny_config(precision)
    engine, plan = make_engine(cfg, stage, 1)
    settle(engine, cfg, plan, 3)
    images, _ = _moved(engine, *batch(cfg, 3, 0, plan.micro_batch))
    sampler, found, output = build_sampler(cfg.masks, cfg.grid, 3, cfg.optimization.batch_size), {}, None
    masks = sampler.sample(2, 0, plan.micro_batch, engine.device)  # what is made at the first use only
    if engine.device.type == "cuda":
        torch.cuda.synchronize()
    for part in ("masks", "forward", "backward", "optimizer", "ema"):
        with waits(engine.device) as places:
            if part == "masks":
                masks = sampler.sample(3, 0, plan.micro_batch, engine.device)
            elif part == "forward":
                output = engine.forward(images, masks)
            elif part == "backward":
                assert output is not None
                engine.backward(output.loss)
            elif part == "optimizer":
                engine.optimizer_step(1e-3, 0.05)
            else:
                engine.ema.update(0.99)
        found[part] = places
    return found


def resolve_precision(folder: str, stage: int) -> tuple[str, dict[str, Any]]:
    """`model.precision: auto` where the ranks would measure different types as the faster one."""
    from dataclasses import replace

    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.model.cpu import Rates
    from ijepa_ds.training import precision

    cfg = tiny_config("auto")
    cfg = replace(cfg, run=replace(cfg.run, dir=folder))
    device = initialise_distributed()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ds_config, _ = spread(cfg, stage, world_size)
    measure = precision.cpu.measure_rates
    precision.cpu.measure_rates = lambda width, hidden: Rates(1.0, 2.0) if rank == 0 else Rates(2.0, 1.0)
    try:
        cfg, ds_config = precision.resolve(cfg, ds_config, rank, device)
    finally:
        precision.cpu.measure_rates = measure
    return cfg.model.precision, ds_config
