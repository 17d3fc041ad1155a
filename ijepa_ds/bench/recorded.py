"""`ijepa-ds bench step|train|ema|comm`: measurements whose ranks return records."""

from __future__ import annotations

import argparse
import tempfile

from ijepa_ds.arguments import check_at_least
from ijepa_ds.bench.launch import run_ranks
from ijepa_ds.bench.record import show


def run(args: argparse.Namespace) -> int:
    """Start the ranks, print rank 0's records and write them; 0, or the exit code of the ranks."""
    check_at_least(args, ranks=1, steps=1)
    if args.verb != "bench train":
        return _measure(args)
    if args.trace and not args.trace.absolute().parent.is_dir():
        raise ValueError(f"--trace {args.trace}: there is no folder {args.trace.absolute().parent}")
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        args.overrides = [*args.overrides, f"run.dir={folder}/run", "run.log_every=1", "eval.every=0"]
        if args.trace:
            args.environment = {"IJEPA_DS_BENCH_TRACE": str(args.trace.absolute())}
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    ranks = run_ranks(args)
    return ranks if isinstance(ranks, int) else show(args.verb, ranks[0], args.json)
