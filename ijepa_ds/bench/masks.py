"""`ijepa-ds bench masks`: what drawing the masks of a micro-batch costs."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from ijepa_ds import config
from ijepa_ds.bench.launch import show
from ijepa_ds.bench.record import machine, record
from ijepa_ds.config import published
from ijepa_ds.masks.sampler import build_sampler

_WARM = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    parser.add_argument("--config", required=True, type=Path, help="YAML of a run")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override keys of the YAML")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.repeats < 1:
        raise ValueError("--repeats: at least 1")
    cfg, _ = published.load_any(args.config, args.overrides)
    plan = config.check(cfg, 1)
    sampler, device = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size), torch.device(args.device)
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
