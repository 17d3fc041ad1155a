"""Starts the ranks of a measurement and reads their figures."""

from __future__ import annotations

import argparse
import glob
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ijepa_ds.cluster.environment import recommended


def run_ranks(args: argparse.Namespace) -> list[dict[str, Any]] | int:
    """Start `args.ranks` processes of `ijepa_ds.bench.rank` with the DeepSpeed launcher.

    Args:
        args: verb, config, deepspeed_config, ranks, steps, overrides.

    Returns:
        The figures in rank order, or the exit code of ranks that failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        code = subprocess.run(command(args, out), check=False, env=_environment(args)).returncode
        if code or not out.exists():
            print(
                f"{args.verb}: the ranks ended without a result; see the message above (if there is none: out of memory?)",
                file=sys.stderr,
            )
            return code or 1
        return json.loads(out.read_text())


def report_ranks(args: argparse.Namespace, report: Callable[[list[dict[str, Any]]], str]) -> int:
    """Start the ranks, write the figures of all ranks to `--json`, and print the report; 0, or the exit code of the ranks."""
    ranks = run_ranks(args)
    if isinstance(ranks, int):
        return ranks
    if args.json:
        args.json.write_text(json.dumps(ranks, indent=1))
    print(report(ranks))
    return 0


def command(args: argparse.Namespace, out: Path) -> list[str]:
    """The command line of the launcher."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--log_level", "critical", "--num_gpus", str(args.ranks)]
    launcher += ["--master_port", str(port)]
    files = ["--config", str(args.config), "--deepspeed_config", str(args.deepspeed_config)]
    own = [args.verb.removeprefix("bench "), "--steps", str(args.steps), "--out", str(out)]
    return [*launcher, "--module", "ijepa_ds.bench.rank", *own, *files, *args.overrides]


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """This environment with this code, the variables that a run sets by default, and `args.environment`."""
    environment = os.environ | getattr(args, "environment", {})
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    cores, has_gpu = len(os.sched_getaffinity(0)), bool(glob.glob("/dev/nvidia[0-9]*"))
    return environment | recommended(environment | {"LOCAL_WORLD_SIZE": str(args.ranks)}, cores, has_gpu)
