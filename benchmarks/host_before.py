"""Host time of a step of revision aae0d3f, measured as `ijepa_ds.bench.host_rank` does. `benchmarks.host_table` starts it.

It runs with that revision's package, which has no `bench host`: `python host_before.py STAGE WORLD STEPS OUT
[section.key=value ...]`.
"""

# mypy: ignore-errors
import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

WARM = 4
NARROW = (
    "model.width=16 model.heads=1 model.mlp_hidden=32 model.predictor.width=16 model.predictor.heads=1 "
    "masks.truncation_group=1 optimization.max_micro_batch=1 data.source=/tmp run.dir=unused"
).split()


def main() -> None:
    """Build the engine in a pretended world and time steps; write medians and the calls of one step."""
    stage, world, steps, out = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    import deepspeed
    from ijepa_ds.engine import Engine

    from ijepa_ds import train
    from ijepa_ds.masks import build_sampler

    deepspeed.init_distributed(verbose=False)
    arguments = argparse.Namespace(
        config=Path("configs/in1k_vith14.yaml"),
        deepspeed_config=Path(f"ds_configs/zero{stage}.json"),
        overrides=[*NARROW, *sys.argv[5:], f"optimization.batch_size={world}"],
    )
    cfg, ds_config, _plan = train.prepare(arguments, world)
    engine = Engine(cfg, ds_config, torch.device("cpu"))
    sampler = build_sampler(cfg.masks, cfg.grid, cfg.run.seed, cfg.optimization.batch_size)
    images = torch.randn(1, 3, cfg.data.crop_size, cfg.data.crop_size).to(engine.compute_dtype)
    calls = 0

    def count(_frame, event, _argument) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    times = []
    for number in range(WARM + steps + 1):
        masks = sampler.sample(number, 0, 1, torch.device("cpu"))
        if number == WARM + steps:
            sys.setprofile(count)
        began = time.process_time()
        engine.backward(engine.forward(images, masks).loss)
        engine.optimizer_step(1e-4, 0.05)
        engine.ema.update(0.996)
        times.append(time.process_time() - began)
        sys.setprofile(None)
    counted = times[WARM : WARM + steps]
    low, middle, high = statistics.quantiles(counted, n=4)
    out.write_text(json.dumps({"median": middle, "quartiles": [low, high], "calls": calls}))
    os._exit(0)


if __name__ == "__main__":
    main()
