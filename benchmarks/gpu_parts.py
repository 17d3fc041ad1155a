"""Measurements of `benchmarks.gpu_session` that no `ijepa-ds bench` makes: the plain implementation, and a CUDA graph."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.baseline import Method, Shape, Training
from ijepa_ds.bench.record import machine, record
from ijepa_ds.config import Config, published, resolve_auto
from ijepa_ds.config.sizes import size_of
from ijepa_ds.masks.sampler import build_sampler
from ijepa_ds.model import compiling, ijepa
from ijepa_ds.model.blocks import flatten_blocks
from ijepa_ds.model.vit import initialise
from ijepa_ds.telemetry.metrics import peak_memory_gib

WARM = 3


def in_a_row(work: Callable[[int], object], steps: int, device: torch.device) -> float:
    """Mean seconds of `work(0)`, `work(1)` ... without synchronisation in between."""
    for step in range(WARM):
        work(step)
    _synchronise(device)
    began = time.perf_counter()
    for step in range(WARM, WARM + steps):
        work(step)
    _synchronise(device)
    return (time.perf_counter() - began) / steps


def plain(cfg: Config, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Steps of the plain implementation: float32 weights under bfloat16 autocast, as the published code does on a GPU."""
    size, predictor = size_of(cfg.model), cfg.model.predictor
    shape = Shape(
        grid=cfg.grid,
        patch_size=cfg.model.patch_size,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
        mlp_hidden=size.mlp_hidden,
        predictor_width=predictor.width,
        predictor_depth=predictor.depth,
    )
    torch.manual_seed(0)
    training = Training(Method(shape).to(device))
    batch = cfg.optimization.batch_size
    sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, batch)
    images = torch.randn(batch, 3, cfg.data.crop_size, cfg.data.crop_size, device=device)

    def step(number: int) -> None:
        masks = sampler.sample(number, 0, batch, device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = training.method(images, list(masks.context.unbind(1)), list(masks.targets.unbind(1)))
        loss.backward()
        training.optimizer_step(1e-4, 0.05)
        training.average(0.996)

    seconds = in_a_row(step, steps, device)
    config = {"model": cfg.model.name, "images": batch, "device": device.type}
    return [
        record("plain.in_a_row", "s", [seconds], config),
        record("plain.images", "images/s", [batch / seconds], config),
        record("plain.peak_memory", "bytes", [peak_memory_gib(device) * 2**30], config),
    ]


@torch.no_grad()
def graph(cfg: Config, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """The target pass as a run computes it, and on CUDA the same replayed from a CUDA graph.

    Raises:
        ValueError: The graph's output differs from the pass's.
    """
    cfg = resolve_auto(cfg, "bfloat16") if cfg.model.precision == "auto" else cfg
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[cfg.model.precision]
    model = ijepa.build(cfg)
    initialise(model, cfg.run.seed, layer_scale=cfg.model.layer_scale)
    model = model.to(device)
    for parameter in model.parameters():  # buffers stay float32, as in the engine
        parameter.data = parameter.data.to(dtype)
    flatten_blocks(model, forget_weights=False)  # as in the engine
    compiled = compiling.is_compiled(cfg.model, device)
    if compiled:
        compiling.compile_blocks(model)
    batch, side = cfg.optimization.batch_size, cfg.data.crop_size
    images = torch.randn(batch, 3, side, side, device=device, dtype=dtype)
    seconds = in_a_row(lambda _: model.target_encoder(images), steps, device)
    config = {"model": cfg.model.name, "images": batch, "device": device.type, "compile": compiled}
    records = [record("target.pass", "s", [seconds], config)]
    if device.type == "cuda":
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            output = model.target_encoder(images)
        captured.replay()
        if not torch.equal(output, expected := model.target_encoder(images)):
            apart = float((output.float() - expected.float()).abs().max())
            raise ValueError(f"the target pass in a CUDA graph differs by up to {apart:g}")
        seconds = in_a_row(lambda _: captured.replay(), steps, device)
        records.append(record("target.graph", "s", [seconds], config))
    return records


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Measure one part and write its records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_parts", description=__doc__)
    parser.add_argument("part", choices=["plain", "graph"])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_intermixed_args()
    cfg, _ = published.load_any(arguments.config, arguments.overrides)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    records = {"plain": plain, "graph": graph}[arguments.part](cfg, arguments.steps, device)
    arguments.json.write_text(json.dumps({"machine": machine(), "records": records}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
