"""What every rank of `ijepa-ds bench step` does: steps on random pixels with the masks of a run, each part timed.

Then the same number of steps without synchronisation in between, as in a run; throughput and shares come from these.
"""

from __future__ import annotations

from typing import Any

import torch

from ijepa_ds.bench.record import machine, record
from ijepa_ds.bench.stopwatch import Stopwatch, records_of, settings
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.distributed.world import initialise_distributed
from ijepa_ds.masks.sampler import Masks, Sampler, build_sampler
from ijepa_ds.model.flops import training_flops
from ijepa_ds.model.mfu import data_sheet_peak, measured_peak
from ijepa_ds.telemetry.metrics import peak_memory_gib
from ijepa_ds.training.engine import Engine

WARM = 2  # warm-up steps: ZeRO-3 records the order of the modules


class RandomSteps:
    """Steps of a run on random pixels."""

    def __init__(self, cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int) -> None:
        """Build the engine."""
        self.engine = Engine(cfg, ds_config, initialise_distributed())
        self.watch = Stopwatch(self.engine.device)
        self.done, self.masks = 0, []  # type: ignore[var-annotated]
        self._plan, self._rank = plan, rank
        self._sampler: Sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
        side, generator = cfg.data.crop_size, torch.Generator().manual_seed(rank)
        pixels = torch.randn(plan.micro_batch, cfg.model.channels, side, side, generator=generator)
        self._pixels = pixels.to(self.engine.device, self.engine.compute_dtype)

    def step(self, counts: bool = True) -> None:
        """One optimizer step."""
        engine, watch, plan = self.engine, self.watch, self._plan
        with watch("step"):
            for micro in range(plan.accumulation):
                position = (micro * plan.world_size + self._rank) * plan.micro_batch
                with watch("masks"):
                    masks = self._sampler.sample(self.done, position, plan.micro_batch, engine.device)
                with watch("forward"):
                    output = engine.forward(self._pixels, masks)
                with watch("backward"):
                    engine.backward(output.loss)
            with watch("optimizer"):
                engine.optimizer_step(1e-4, 0.05)
            with watch("ema"):
                engine.ema.update(0.996)
        watch.next(counts)
        self.done += 1
        if counts:
            self.masks.append(masks)


def flops_of(cfg: Config, masks: list[Masks]) -> list[float]:
    """FLOPs per image of each step."""
    return [training_flops(cfg, one.context.shape[-1], one.targets.shape[-1]) for one in masks]


def shares(verb: str, reached: list[float], peaks: list[float], engine: Engine, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of MFU, if the data sheet of the device is known, and of the share of the fastest measured product.

    Args:
        verb: First part of the records' names.
        reached: Model FLOPs a second and device, one value a repeat.
        peaks: FLOPs a second of the measured products.
        engine: Its device and type.
        config: The records' settings.
    """
    sheet = data_sheet_peak(engine.device, engine.compute_dtype)
    found = [record(f"{verb}.matmul_share", "share", [rate / max(peaks) for rate in reached], config)]
    return found + ([record(f"{verb}.mfu", "share", [rate / sheet for rate in reached], config)] if sheet else [])


def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, steps: int) -> dict[str, Any]:
    """Measure steps on random pixels; return records of the slowest rank."""
    running = RandomSteps(cfg, ds_config, plan, rank)
    engine, config = running.engine, settings(cfg, running.engine, plan)
    peaks = []
    for step in range(WARM + steps):
        running.step(step >= WARM)
        if step >= WARM:
            peaks.append(measured_peak(engine.device, engine.compute_dtype))  # between steps, under the same machine load
    samples = running.watch.slowest()
    running.masks.clear()
    row = running.watch.in_a_row(running.step, steps)
    flops = plan.batch_size * sum(flops_of(cfg, running.masks)) / steps
    return {
        "title": engine.describe(),
        "machine": machine(),
        "records": [
            *records_of("step", {"all" if part == "step" else part: values for part, values in samples.items()}, config),
            record("step.in_a_row", "s", [row], config),
            record("step.images", "images/s", [plan.batch_size / row], config),
            record("step.product_rate", "FLOP/s", peaks, config),
            *shares("step", [flops / row / plan.world_size], peaks, engine, config),
            record("step.peak_memory", "bytes", [peak_memory_gib(engine.device) * 2**30], config),
        ],
    }
