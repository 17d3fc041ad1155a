"""`ijepa-ds bench step`: what the parts of a step cost, without reading images."""

from __future__ import annotations

import argparse

from ijepa_ds.bench.launch import add_job_arguments, run_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's command line."""
    add_job_arguments(parser, repeats=10)


def run(args: argparse.Namespace) -> int:
    """Start the ranks, and print what they found."""
    return run_verb("bench step", "ijepa_ds.bench.step_rank", args)
