"""`ijepa-ds bench masks`: times the sampling of masks for a micro-batch."""

from __future__ import annotations

import argparse
import time

import torch

from ijepa_ds import config
from ijepa_ds.arguments import check_at_least, device_of
from ijepa_ds.bench.record import machine, record, show
from ijepa_ds.config import published
from ijepa_ds.masks.sampler import build_sampler

_WARM = 3


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    check_at_least(args, repeats=1)
    cfg, _ = published.load_any(args.config, args.overrides, expand=False)
    plan = config.check(cfg, 1)
    sampler, device = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size), device_of(args.device)
    seconds, lengths = [], []
    for step in range(_WARM + args.repeats):
        began = time.perf_counter()
        masks = sampler.sample(step, 0, plan.micro_batch, device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
        lengths.append(masks.context.shape[-1])
    settings = {"sampler": cfg.masks.sampler, "grid": cfg.grid, "images": plan.micro_batch, "device": str(device)}
    records = [
        record("masks.sample", "s", seconds[_WARM:], settings),
        record("masks.context", "patches", lengths[_WARM:], settings),
    ]
    title = f"masks of {plan.micro_batch} images, {cfg.masks.sampler}, {cfg.grid} x {cfg.grid} patches"
    return show("bench masks", {"records": records, "machine": machine(), "title": title}, args.json)
