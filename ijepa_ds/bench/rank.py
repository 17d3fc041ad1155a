"""What the launcher starts on every rank for `ijepa-ds bench VERB`: reads the run, measures, and collects the figures.

`VERB_rank.measure(cfg, ds_config, plan, rank, steps)` does the work.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Sequence

from ijepa_ds import terminal
from ijepa_ds.arguments import add_local_rank, add_out, add_run
from ijepa_ds.distributed.environment import world_from_environment
from ijepa_ds.distributed.exchange import gather_on_first
from ijepa_ds.distributed.world import initialise_distributed, shut_down_distributed
from ijepa_ds.exits import USER_ERROR
from ijepa_ds.training import job, precision

MEASURES = ("checkpoint", "comm", "ema", "fit", "state", "step", "train")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; rank 0 writes a list of the figures of all ranks."""
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.bench.rank")
    parser.add_argument("measure", choices=MEASURES)
    add_run(parser)
    parser.add_argument("--steps", type=int, required=True)
    add_out(parser, "JSON file for the figures")
    add_local_rank(parser)
    arguments = parser.parse_intermixed_args(argv)
    try:
        rank, _, world_size = world_from_environment()
        cfg, ds_config, plan = job.read(arguments, world_size, new_run=False)
        cfg, ds_config = precision.resolve(cfg, ds_config, rank, initialise_distributed())
        measure = importlib.import_module(f"ijepa_ds.bench.{arguments.measure}_rank").measure
        figures = measure(cfg, ds_config, plan, rank, arguments.steps)
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            terminal.error(f"ijepa-ds bench {arguments.measure}", str(error))
        else:
            time.sleep(5)  # rank 0 prints its error first, then the launcher ends this rank
            terminal.error(f"ijepa-ds bench {arguments.measure}, rank {os.environ['RANK']}", str(error))
        return USER_ERROR
    every = gather_on_first(figures)
    if every is not None:
        arguments.out.write_text(json.dumps(every))
    shut_down_distributed()
    return 0


if __name__ == "__main__":
    sys.exit(main())
