"""What every rank of `ijepa-ds bench ema` does: time updates of the sharded EMA and of an unsharded loop, interleaved."""

from __future__ import annotations

from typing import Any

import torch

from ijepa_ds.bench.record import machine, record
from ijepa_ds.bench.step_rank import WARM
from ijepa_ds.bench.stopwatch import Stopwatch, records_of, settings
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.distributed.world import barrier, initialise_distributed
from ijepa_ds.training.engine import Engine


@torch.no_grad()
def measure(cfg: Config, ds_config: dict[str, Any], plan: BatchPlan, rank: int, repeats: int) -> dict[str, Any]:
    """Records of both updates, of the slowest rank."""
    engine = Engine(cfg, ds_config, initialise_distributed())
    watch, config = Stopwatch(engine.device), settings(cfg, engine, plan)
    shapes = engine.ema.layout.shapes.values()
    targets, sources = ([torch.full(s, value, device=engine.device) for s in shapes] for value in (0.0, 1.0))
    for repeat in range(WARM + repeats):
        barrier()
        with watch("update"):
            engine.ema.update(0.996)
        with watch("loop"):
            for target, source in zip(targets, sources, strict=True):
                target.mul_(0.996).add_((1.0 - 0.996) * source)
        watch.next(repeat >= WARM)
    samples = watch.slowest()
    gain = [loop / update for loop, update in zip(samples["loop"], samples["update"], strict=True)]
    records = [*records_of("ema", samples, config), record("ema.loop_to_update", "x", gain, config)]
    return {"title": engine.describe(), "machine": machine(), "records": records}
