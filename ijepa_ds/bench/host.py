"""`ijepa-ds bench host`: processor time of a step at tiny widths, in process groups of any size; FSDP2 for comparison."""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ijepa_ds.arguments import check_at_least
from ijepa_ds.bench.record import write_json

logger = logging.getLogger(__name__)
PARTS = ("forward", "backward", "optimizer", "ema", "step")


def run(args: argparse.Namespace) -> int:
    """Measure every way in every world, each in a process of its own; print, write and draw the figures; 0."""
    worlds = _worlds(args)
    check_at_least(args, steps=1)
    for option, path in (("json", args.json), ("plot", args.plot)):
        if path and not path.absolute().parent.is_dir():
            raise ValueError(f"--{option} {path}: there is no folder {path.absolute().parent}")
    found: list[dict[str, Any]] = [_measure(args, "plain", 1)]
    ways = ["fsdp2", "zero", *(["zero_deepspeed"] if args.deepspeed_collectives else [])]
    for world in worlds:
        found += [_measure(args, way, world) for way in ways]
    figures = {"machine": found[0]["machine"], "records": [item for one in found for item in one["records"]]}
    print(f"\n{report(figures['records'])}")
    if args.json:
        write_json(args.verb, figures, args.json)
    if args.plot:
        from ijepa_ds.bench.host_picture import write  # Matplotlib only where a picture is wanted

        write(args.plot, figures["records"])
    return 0


def _worlds(args: argparse.Namespace) -> list[int]:
    """The numbers behind `--world`; overrides that follow them go where they belong.

    Raises:
        ValueError: names what is no number of ranks.
    """
    args.overrides = [*args.overrides, *(word for word in args.world if "=" in word)]
    words = [word for word in args.world if "=" not in word]
    wrong = [word for word in words if not word.isdecimal() or int(word) < 1]
    if wrong or not words:
        raise ValueError(
            f"--world {' '.join(wrong) or 'without a number'}: expected numbers of ranks, such as --world 1 64 512"
        )
    return sorted({int(word) for word in words})


def _measure(args: argparse.Namespace, way: str, world: int) -> dict[str, Any]:
    """What a process of `bench.host_rank` writes.

    Raises:
        RuntimeError: with its messages, if it fails.
    """
    logger.info("%s, %d ranks ...", way, world)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "records.json"
        files = ["--config", str(args.config), "--deepspeed_config", str(args.deepspeed_config)]
        own = [way, "--world", str(world), "--steps", str(args.steps), "--out", str(out)]
        command = [sys.executable, "-m", "ijepa_ds.bench.host_rank", *own, *files, *args.overrides]
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            command, check=False, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if ended.returncode or not out.exists():
            last = "\n".join(ended.stdout.splitlines()[-20:])
            raise RuntimeError(f"{way} on {world} ranks ended with exit code {ended.returncode}:\n{last}")
        return json.loads(out.read_text())


def report(records: list[dict[str, Any]]) -> str:
    """The figures as text: one line for each way and number of ranks."""
    rows = by_way(records)
    lines = [
        "processor time of a step in ms: medians, [quartiles] of the whole step; of it, DeepSpeed's hooks (gathers, releases,",
        "reductions; - where not measured) and what the fake backend spends",
        f"{'way':<17}{'ranks':>6}{''.join(f'{part:>10}' for part in PARTS)}  {'quartiles':<18}{'hooks':>7}{'backend':>9}"
        f"{'calls':>10}{'collectives':>13}{'MiB':>8}{'start, s':>10}",
    ]
    for (way, ranks), found in rows.items():
        low, high = found["step"]["quartiles"]
        parts = "".join(f"{1e3 * found[part]['median']:10.1f}" for part in PARTS)
        spread = f"[{1e3 * low:.1f}, {1e3 * high:.1f}]"
        counts = f"{found['calls']['median']:>10,}{found['collectives']['median']:>13,}{found['bytes']['median'] / 2**20:8.1f}"
        backend, start = 1e3 * found["backend"]["median"], found["start"]["median"]
        hooks = f"{1e3 * found['hooks']['median']:.1f}" if "hooks" in found else "-"
        lines.append(f"{way:<17}{ranks:>6}{parts}  {spread:<18}{hooks:>7}{backend:9.1f}{counts}{start:10.1f}")
    return "\n".join(lines)


def by_way(records: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, dict[str, Any]]]:
    """Way and ranks -> part -> record; ways in the order of their first measurement."""
    rows: dict[tuple[str, int], dict[str, dict[str, Any]]] = {}
    for item in records:
        part = item["what"].rpartition(".")[2]
        rows.setdefault((item["config"]["way"], item["config"]["ranks"]), {})[part] = item
    ways = list(dict.fromkeys(way for way, _ in rows))
    return dict(sorted(rows.items(), key=lambda row: (ways.index(row[0][0]), row[0][1])))
