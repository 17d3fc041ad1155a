"""Starting the ranks of a measurement, and fetching what they found."""

from __future__ import annotations

import argparse
import glob
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ijepa_ds.bench.record import table
from ijepa_ds.cluster.environment import recommended


def add_job_arguments(parser: argparse.ArgumentParser, repeats: int | None = None) -> None:
    """Which run, on how many ranks, and where the figures go; what `run_ranks` takes; `--steps` with `repeats` by default."""
    if repeats is not None:
        parser.add_argument("--steps", type=int, default=repeats, help=f"repeats counted, after a warm-up ({repeats})")
    parser.add_argument("--config", required=True, type=Path, help="YAML of a run; what is saved goes to its run.dir")
    parser.add_argument("--deepspeed_config", required=True, type=Path, help="JSON: how it is spread over devices")
    parser.add_argument("--ranks", type=int, required=True, help="processes on this machine (GPUs, where there are)")
    parser.add_argument("--json", type=Path, help="also write all figures of all ranks here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override keys of the YAML")


def run_ranks(verb: str, module: str, args: argparse.Namespace) -> list[dict[str, Any]] | int:
    """Start `args.ranks` processes of a module with the DeepSpeed launcher.

    Args:
        verb: for messages.
        module: its `main` writes the figures of all ranks, a list, to `--out`.
        args: config, deepspeed_config, ranks, steps, json, overrides.

    Returns:
        The figures in rank order; an exit code when there are none.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        code = subprocess.run(command(module, args, out), check=False, env=_environment(args)).returncode
        if code or not out.exists():
            print(f"{verb}: the ranks ended without a result (above is why; killed without a word: memory)", file=sys.stderr)
            return code or 1
        ranks = json.loads(out.read_text())
    if args.json:
        args.json.write_text(json.dumps(ranks, indent=1))
    return ranks


def run_verb(verb: str, module: str, args: argparse.Namespace) -> int:
    """Start ranks whose figures are `{"records": [...], "machine": {...}}` (`record`); print rank 0's and write them.

    The JSON holds `verb`, `machine` and `records`, for every verb alike.
    """
    if args.steps < 1 or args.ranks < 1:
        raise ValueError("--ranks and --steps must be at least 1")
    target, args.json = args.json, None
    ranks = run_ranks(verb, module, args)
    if isinstance(ranks, int):
        return ranks
    return show(verb, ranks[0], target)


def show(verb: str, figures: dict[str, Any], target: Path | None) -> int:
    """Print records, and write them to `target`, if there is one; 0."""
    print(f"\n{figures.get('title', verb)}: median [quartiles] x repeats\n{table(figures['records'])}")
    if target:
        target.write_text(json.dumps({"verb": verb, "machine": figures["machine"], "records": figures["records"]}, indent=1))
    return 0


def command(module: str, args: argparse.Namespace, out: Path) -> list[str]:
    """The launcher's command line."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(args.ranks), "--master_port", str(port)]
    files = ["--config", str(args.config), "--deepspeed_config", str(args.deepspeed_config)]
    own = ["--steps", str(args.steps), "--out", str(out)]
    return [*launcher, "--module", module, *files, *own, *args.overrides]


def _environment(args: argparse.Namespace) -> dict[str, str]:
    """Ours, with this code, what a run chooses for itself where nothing is set, and `args.environment`."""
    environment = os.environ | getattr(args, "environment", {})
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    cores, has_gpu = len(os.sched_getaffinity(0)), bool(glob.glob("/dev/nvidia[0-9]*"))
    return environment | recommended(environment | {"LOCAL_WORLD_SIZE": str(args.ranks)}, cores, has_gpu)
