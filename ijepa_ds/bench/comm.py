"""`ijepa-ds bench comm`: what collectives cost by size, and what a step sends."""

from __future__ import annotations

import argparse

from ijepa_ds.bench.launch import add_job_arguments, run_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    add_job_arguments(parser, repeats=20)


def run(args: argparse.Namespace) -> int:
    """Start the ranks, and print what they found."""
    return run_verb("bench comm", "ijepa_ds.bench.comm_rank", args)
