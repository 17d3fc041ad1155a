"""The two sides of a comparison: our code and the plain implementation, on the same weights, images and masks."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement."""

    side: str  # ours | baseline
    model: str  # a name of `config.sizes.SIZES`
    images: str = ""  # folder of JPEGs; empty: random pixels, no loader
    batch: int = 8
    crop: int = 224
    patch: int = 16
    stage: int = 0
    overrides: tuple[str, ...] = ()


def config_of(s: Setting) -> Any:
    """The run's configuration."""
    from ijepa_ds import config

    text = f"""
run: {{dir: unused, hang_timeout: 0}}
data: {{source: "{s.images or "unused"}", crop_size: {s.crop}}}
model: {{name: {s.model}, patch_size: {s.patch}, precision: float32}}
masks: {{truncation_group: {s.batch}}}
optimization: {{batch_size: {s.batch}, steps: 100000, warmup_steps: 10}}
"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_text(text)
        return config.load(path, list(s.overrides))


def images_of(s: Setting) -> torch.Tensor:
    """Random pixels, the same for both sides."""
    return torch.randn(s.batch, 3, s.crop, s.crop, generator=torch.Generator().manual_seed(0))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds by CLOCK, and the result of `work`."""
    began = CLOCK()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return CLOCK() - began, result


def processor_seconds() -> float:
    """Processor seconds of this process, its threads and living children; other load hardly changes them."""
    ticks = 0
    for child in multiprocessing.active_children():
        with open(f"/proc/{child.pid}/stat", encoding="ascii") as file:
            ticks += sum(int(field) for field in file.read().rsplit(")", 1)[1].split()[11:13])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


CLOCK = processor_seconds if os.environ.get("BENCH_CLOCK") == "cpu" else time.perf_counter


class Ours:
    """Engine, sampler and loader of a run."""

    def __init__(self, s: Setting) -> None:
        from ijepa_ds import config
        from ijepa_ds.config.deepspeed_json import load_deepspeed
        from ijepa_ds.distributed.world import initialise_distributed
        from ijepa_ds.masks.sampler import build_sampler
        from ijepa_ds.training.engine import Engine

        self._cfg = cfg = config_of(s)
        self._plan = plan = config.check(cfg, 1)
        device = initialise_distributed()
        ds_config = load_deepspeed(ROOT / "ds_configs" / f"zero{s.stage}.json", cfg, plan)
        self._engine = Engine(cfg, ds_config, device)
        self._pixels = images_of(s).to(device)
        self._sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, s.batch)
        self._step, self._batches = 0, None
        if s.images:
            from ijepa_ds.bench.steps import Steps
            from ijepa_ds.data.sources import open_source

            self._real = Steps(self._engine, cfg, plan, 0, open_source(cfg.data.source))

    def step(self) -> dict[str, float]:
        """Make one step on random pixels; return seconds of its parts and the loss."""
        engine = self._engine
        masks = self._sampler.sample(self._step, 0, len(self._pixels), self._pixels.device)
        self._step += 1

        def both() -> float:
            output = engine.forward(self._pixels, masks)
            engine.backward(output.loss)
            return float(output.loss.detach())

        both_seconds, loss = timed(both)
        optimizer, _ = timed(lambda: engine.optimizer_step(1e-4, 0.05))
        average, _ = timed(lambda: engine.ema.update(0.996))
        return {"forward+backward": both_seconds, "optimizer": optimizer, "ema": average, "loss": loss}

    def masks(self) -> dict[str, float]:
        """Mean seconds to draw the masks of a batch."""
        first, images = self._step, len(self._pixels)
        self._step += BATCHES
        seconds, _ = timed(lambda: [self._sampler.sample(first + i, 0, images, self._pixels.device) for i in range(BATCHES)])
        return {"masks": seconds / BATCHES}

    def real(self) -> dict[str, float]:
        """Mean seconds of steps from JPEGs to the updated target."""
        seconds, loss = timed(lambda: [self._real.step() for _ in range(STEPS)])
        return {"real": seconds / STEPS, "loss": float(loss[-1])}

    def peak_rate(self) -> dict[str, float]:
        """Peak FLOP/s of matrix products on this machine, and FLOPs of a step at the mean mask length."""
        from ijepa_ds.model.flops import training_flops
        from ijepa_ds.model.mfu import measured_peak

        masks = [self._sampler.sample(step, 0, len(self._pixels), "cpu") for step in range(50)]
        flops = [training_flops(self._cfg, m.context.shape[-1], m.targets.shape[-1]) for m in masks]
        rate = measured_peak(self._engine.device, self._engine.compute_dtype, CLOCK)
        return {"rate": rate, "flops": len(self._pixels) * sum(flops) / len(flops)}

    def close(self) -> None:
        """End threads and process group."""
        from ijepa_ds.distributed.world import shut_down_distributed

        if hasattr(self, "_real"):
            self._real.close()
        shut_down_distributed()


STEPS = 3  # in one request of real steps
BATCHES = 10  # in one request of masks


class Baseline:
    """The plain implementation with our initial weights, and our masks where their lengths affect time."""

    def __init__(self, s: Setting) -> None:
        from benchmarks.baseline import Method, Shape, Training
        from benchmarks.baseline_data import MaskCollator
        from ijepa_ds.config.sizes import size_of
        from ijepa_ds.masks.sampler import build_sampler
        from ijepa_ds.model import ijepa
        from ijepa_ds.model.vit import initialise

        cfg = config_of(s)
        size, predictor = size_of(cfg.model), cfg.model.predictor
        shape = Shape(cfg.grid, s.patch, size.width, size.depth, size.heads, size.mlp_hidden, predictor.width, predictor.depth)
        method, start = Method(shape), ijepa.build(cfg)
        initialise(start.encoder, cfg.run.seed, "encoder.")
        initialise(start.predictor, cfg.run.seed, "predictor.")
        start.target_encoder.load_state_dict(start.encoder.state_dict())
        method.load_state_dict(start.state_dict())
        del start
        self._training = Training(method)
        self._pixels = images_of(s)
        self._sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, s.batch)
        self._collator, self._step = MaskCollator(cfg.grid), 0
        if s.images:
            self._batches = iter(self._loader(s, cfg))

    def _loader(self, s: Setting, cfg: Any) -> Any:
        """The run's images and windows in the run's order."""
        from benchmarks.baseline_data import Crops, make_loader
        from ijepa_ds.data.samples import SamplePlan, Share
        from ijepa_ds.data.sources import open_source

        index = open_source(cfg.data.source)
        share = Share(rank=0, world_size=1, micro_batch=s.batch, accumulation=1)
        plan = SamplePlan(cfg.data, index, seed=cfg.run.seed, share=share)
        samples = [plan.samples(step) for step in range(1000)]
        paths = [bytes(index.path(int(i))).decode() for some in samples for i in some.indices]
        windows = [window for some in samples for window in some.windows.tolist()]
        return make_loader(Crops(paths, windows, s.crop), self._collator, s.batch)

    def _masks(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The masks of our run, mask-major."""
        masks = self._sampler.sample(self._step, 0, len(self._pixels), "cpu")
        self._step += 1
        return list(masks.context.transpose(0, 1).contiguous()), list(masks.targets.transpose(0, 1).contiguous())

    def step(self) -> dict[str, float]:
        """As `Ours.step`."""
        masks, training = self._masks(), self._training

        def both() -> float:
            loss = training.method(self._pixels, *masks)
            loss.backward()
            return float(loss.detach())

        both_seconds, loss = timed(both)
        optimizer, _ = timed(lambda: training.optimizer_step(1e-4, 0.05))
        average, _ = timed(lambda: training.average(0.996))
        return {"forward+backward": both_seconds, "optimizer": optimizer, "ema": average, "loss": loss}

    def masks(self) -> dict[str, float]:
        """Mean seconds to draw the masks of a batch."""
        return {"masks": timed(lambda: [self._collator.masks(len(self._pixels)) for _ in range(BATCHES)])[0] / BATCHES}

    def real(self) -> dict[str, float]:
        """As `Ours.real`. The collator draws masks too, but steps use ours, for equal lengths."""

        def one() -> float:
            pixels, _, _ = next(self._batches)
            return self._training.step(pixels, self._masks(), 1e-4, 0.05, 0.996)

        seconds, loss = timed(lambda: [one() for _ in range(STEPS)])
        return {"real": seconds / STEPS, "loss": loss[-1]}

    def close(self) -> None:
        """End the worker processes."""
        self._batches = None


SIDES = {"ours": Ours, "baseline": Baseline}
