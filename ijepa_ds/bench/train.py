"""`ijepa-ds bench train`: the first steps of a real run, with its loader and its log, and where their time goes."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ijepa_ds.bench.launch import add_job_arguments, run_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    add_job_arguments(parser, repeats=20)
    parser.add_argument("--trace", type=Path, help="write a torch.profiler trace of two more steps of rank 0 here")


def run(args: argparse.Namespace) -> int:
    """Start the run in a temporary folder, and print where its time went."""
    if args.trace and not args.trace.absolute().parent.is_dir():
        raise ValueError(f"--trace {args.trace}: there is no folder {args.trace.absolute().parent}")
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        args.overrides = [*args.overrides, f"run.dir={folder}/run", "run.log_every=1", "eval.every=0"]
        if args.trace:
            args.environment = {"IJEPA_DS_BENCH_TRACE": str(args.trace.absolute())}
        return run_verb("bench train", "ijepa_ds.bench.train_rank", args)
