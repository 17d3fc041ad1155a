"""Losses of 300 steps in float32, bfloat16, and bfloat16 with `model.residual: bfloat16`: same start, images and masks.

    python -m benchmarks.bfloat16 losses.json --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero2.json \
        data.source=/path/to/images run.dir=unused ...

The control is float32 from a start whose weights were rounded to bfloat16 once: how far such a run gets from itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from ijepa_ds.bench.steps import Steps
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.distributed.world import initialise_distributed
from ijepa_ds.training import job
from ijepa_ds.training.engine import Engine

WINDOW = 20  # steps of a mean
KINDS = {
    "float32": ["model.precision=float32"],
    "bfloat16": ["model.precision=bfloat16"],
    "residual": ["model.precision=bfloat16", "model.residual=bfloat16"],
    "control": ["model.precision=float32"],
}


def losses(name: str, arguments: argparse.Namespace, device: torch.device) -> list[float]:
    """Losses of all steps of one kind."""
    overrides = [*arguments.overrides, *KINDS[name]]
    cfg, ds_config, plan = job.read(argparse.Namespace(**vars(arguments) | {"overrides": overrides}), 1, new_run=False)
    engine = Engine(cfg, ds_config, device)
    if name == "control":
        for slot in range(engine.layout.num_slots):
            master = engine.layout.master(slot)
            master.copy_(master.bfloat16())
        engine.layout.publish_masters()
    steps = Steps(engine, cfg, plan, 0, open_source(cfg.data.source, ScanOptions()))
    found = [float(steps.step()) for _ in range(arguments.steps)]
    steps.close()
    engine.deepspeed.destroy()
    return found


def main() -> None:
    """Print means of 20 steps, and how far from the first kind's; all losses to a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", required=True, type=Path)
    parser.add_argument("--deepspeed_config", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="the first is compared with (all)")
    parser.add_argument("overrides", nargs="*")
    arguments, device = parser.parse_intermixed_args(), initialise_distributed()
    found = {name: losses(name, arguments, device) for name in arguments.kinds}
    arguments.out.write_text(json.dumps(found))
    for first in range(0, arguments.steps, WINDOW):
        plain, *others = (sum(values[first : first + WINDOW]) / WINDOW for values in found.values())
        pairs = zip(list(found)[1:], others, strict=True)
        apart = ", ".join(f"{name} {100 * (other / plain - 1):+.2f} %" for name, other in pairs)
        print(f"steps {first + 1:4} to {first + WINDOW:4}: {arguments.kinds[0]} {plain:.5f}, {apart}")


if __name__ == "__main__":
    sys.exit(main())
