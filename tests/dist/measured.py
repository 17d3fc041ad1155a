"""What a real step of the pool's ranks holds and sends, for comparison with the plan. Called on every rank at once."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ijepa_ds.bench.memory import held_bytes
from ijepa_ds.config import Config, DataConfig, MasksConfig, ModelConfig, OptimizationConfig, PredictorConfig, RunConfig
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.model.ijepa import IJEPA
from tests.dist import jobs


def config_of(
    name: str,
    *,
    micro_batch: int,
    ranks: int,
    accumulation: int = 1,
    precision: Any = "float32",
    crop_size: int = 224,
    **model: Any,
) -> Config:
    """A full-size encoder of `SIZES` with a predictor of four blocks; contexts have 70 of the 196 patches of 224 pixels."""
    return Config(
        run=RunConfig(dir="unused-run"),
        data=DataConfig(source="unused", crop_size=crop_size),
        model=ModelConfig(
            name=name,
            precision=precision,
            predictor=PredictorConfig(depth=4, width=384, heads=12),
            **model,
        ),
        masks=MasksConfig(sampler="unbiased", context_tokens=70 * crop_size**2 // 224**2, min_keep=1),
        optimization=OptimizationConfig(
            batch_size=micro_batch * ranks * accumulation, max_micro_batch=micro_batch, steps=60, warmup_steps=6
        ),
    )


def live_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once; the compiler's fake ones, which have no memory, left out."""
    gc.collect()
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thing in gc.get_objects():
            if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor) and thing.device.type == "cpu":
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_bytes(profile: torch.profiler.profile) -> int:
    """The most that the CPU allocator held above the start of a profile."""
    totals: list[tuple[int, int]] = []
    pending = list(profile.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            extra = event.extra_fields
            if extra.device.type == "cpu":
                totals.append((event.start_time_ns, extra.alloc_size))
    held = peak = 0
    for _, size in sorted(totals, key=lambda pair: pair[0]):
        held += size
        peak = max(peak, held)
    return peak


def activation_bytes(model: IJEPA, cfg: Config, micro_batch: int) -> tuple[int, int, int]:
    """What the allocator held at most in a step of a plain model, gradients apart, and its tokens (Kc, Kt)."""
    size = cfg.data.crop_size
    masks = build_sampler(cfg.masks, cfg.grid, 0, micro_batch).sample(0, 0, micro_batch, "cpu")
    images = torch.zeros(micro_batch, 3, size, size)
    for parameter in model.parameters():  # gradients exist already: the peak is of activations alone
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        model(images, masks).loss.backward()
    return peak_bytes(profile), masks.context.shape[-1], masks.targets.shape[-1]


def measure(stage: int, extra: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Two steps to settle, then one under measurement."""
    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.zero.collectives import Collectives

    initialise_distributed()
    gc.collect()
    before = live_bytes()
    cfg = config_of(ranks=dist.get_world_size(), **settings)
    engine, plan = jobs.make_engine(cfg, stage, dist.get_world_size(), extra)
    rank = dist.get_rank()
    jobs.settle(engine, cfg, plan, 2)
    layout = engine.layout
    parts = {
        "masters": sum(layout.master(slot).numel() for slot in range(layout.num_slots)) * 4,
        "moments": sum(
            value.numel() * 4
            for slot in range(layout.num_slots)
            for key, value in layout.moments(slot).items()
            if key != "step"
        ),
        "ema": held_bytes(engine)["EMA"],
    }
    at_rest = live_bytes() - before
    images, masks = jobs.batch(cfg, 2, rank * plan.micro_batch, plan.micro_batch)
    images = images.to(engine.compute_dtype)
    with Collectives() as sent:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            output = engine.forward(images, masks)
            engine.backward(output.loss)
            del output
            after = live_bytes() - before
        peak = peak_bytes(profile)
        del profile
        engine.optimizer_step(1e-3, 0.1)
        engine.ema.update(0.9)
    return {
        "parts": parts,
        "at_rest": at_rest,
        "after_backward": after,
        "peak": peak,
        "tokens": (masks.context.shape[-1], masks.targets.shape[-1]),
        "sent": {kind: (t.calls, t.bytes) for kind, t in sent.totals.items()},
    }


def timeline(stage: int, extra: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """Bytes of a rank through one step: at rest, and in every pass what was held before it and at most.

    Args:
        stage: ZeRO stage.
        extra: Keys of the DeepSpeed JSON beside the shipped ones.
        settings: of `config_of`.
    """
    from deepspeed import comm as dist

    from ijepa_ds.distributed.world import initialise_distributed
    from ijepa_ds.zero.collectives import Collectives

    initialise_distributed()
    world, rank = dist.get_world_size(), dist.get_rank()
    gc.collect()
    before = live_bytes()
    cfg = config_of(ranks=world, **settings)
    engine, plan = jobs.make_engine(cfg, stage, world, extra)
    phases: list[tuple[str, int, int]] = []

    def phase(name: str, work: Callable[[], Any], measured: bool) -> Any:
        if not measured:
            return work()
        held = live_bytes() - before
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = work()
        phases.append((name, held, held + peak_bytes(profile)))
        return result

    def step(number: int, measured: bool) -> Any:
        masks = None
        for micro in range(plan.accumulation):
            first = (micro * world + rank) * plan.micro_batch
            images, masks = jobs.batch(cfg, number, first, plan.micro_batch)
            images = images.to(engine.compute_dtype)
            output = phase(f"forward {micro}", lambda images=images, masks=masks: engine.forward(images, masks), measured)
            phase(f"backward {micro}", lambda output=output: engine.backward(output.loss), measured)
            del output
        phase("optimizer", lambda: engine.optimizer_step(1e-3, 0.1), measured)
        phase("ema", lambda: engine.ema.update(0.9), measured)
        return masks

    for number in range(2):
        step(number, False)
    gc.collect()  # cycles of the start, which a longer run frees at some time
    at_rest = live_bytes() - before
    with Collectives() as sent:
        masks = step(2, True)
    return {
        "at_rest": at_rest,
        "phases": phases,
        "after": live_bytes() - before,
        "tokens": (masks.context.shape[-1], masks.targets.shape[-1]),
        "sent": {kind: (t.calls, t.bytes) for kind, t in sent.totals.items()},
    }
