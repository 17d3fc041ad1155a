"""`ijepa-ds bench comm`: what collectives cost by size, and what a step sends."""

from __future__ import annotations

import argparse

from ijepa_ds.bench.launch import add_job_arguments, run_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    add_job_arguments(parser)
    parser.add_argument("--steps", type=int, default=20, help="repeats counted, after a warm-up")


def run(args: argparse.Namespace) -> int:
    """Start the ranks, and print what they found."""
    if args.steps < 1 or args.ranks < 1:
        raise ValueError("--ranks and --steps must be at least 1")
    return run_verb("bench comm", "ijepa_ds.bench.comm_rank", args)
