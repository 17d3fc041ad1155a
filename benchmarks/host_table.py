"""Host time of a step: plain PyTorch, FSDP2, this package at an earlier revision and now, by stage, compilation and ranks.

    python -m benchmarks.host_table --world 1 64 512 --steps 9

Every figure is from a process of its own (`ijepa_ds.bench.host_rank`, `benchmarks/host_before.py`). They run one after the
other, so that a busy machine hits all ways alike; figures of the same number of ranks are neighbours. Images have 8 x 8
patches: with 16 x 16, attention in bfloat16 takes longer than the host's own work on a CPU without bfloat16 products.

Figures that `--out` has already are not measured again, so a command that was stopped continues.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.revisions import git
from benchmarks.sides import ROOT

BEFORE = "aae0d3f"  # before host time was an aim; its worker is for this revision only
CONFIG = "configs/in1k_vith14.yaml"
FEW_PATCHES = ["model.patch_size=28", "masks.min_keep=1"]


def main() -> int:
    """Measure, print the table as Markdown, append every figure to `--out` as it comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", nargs="+", type=int, default=[1, 64, 512], metavar="N", help="ranks (1 64 512)")
    parser.add_argument("--steps", type=int, default=9, help="steps counted, after a warm-up (9)")
    parser.add_argument("--out", type=Path, default=Path("host_table.jsonl"), help="JSON lines, added to (host_table.jsonl)")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    known = {_key(row) for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / BEFORE
        git("worktree", "add", "--detach", str(old), BEFORE)
        try:
            for way, stage, compiled, world in _rows(args.world):
                if (way, stage, compiled, world) in known:
                    continue
                result = _measure(old, Path(folder) / "figures.json", way, stage, compiled, world, args.steps)
                rows.append({"way": way, "stage": stage, "compiled": compiled, "ranks": world} | result)
                with args.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                print(rows[-1], file=sys.stderr, flush=True)
        finally:
            git("worktree", "remove", "--force", str(old))
    print(table(rows))
    return 0


def _key(row: dict[str, Any]) -> tuple[str, int, bool, int]:
    return row["way"], row["stage"], row["compiled"], row["ranks"]


def _rows(worlds: list[int]) -> Iterator[tuple[str, int, bool, int]]:
    """Way, stage (0: none), compiled, ranks."""
    for world in worlds:
        for compiled in (False, True):
            if world == 1:
                yield "plain", 0, compiled, world
            yield "fsdp2", 0, compiled, world
        for stage in (2, 3):
            yield "before", stage, False, world
            for compiled in (False, True):
                yield "zero", stage, compiled, world


def _measure(old: Path, out: Path, way: str, stage: int, compiled: bool, world: int, steps: int) -> dict[str, Any]:
    """Seconds of a step (median, quartiles) and calls."""
    tree = old if way == "before" else ROOT
    if way == "before":
        command = [
            sys.executable,
            str(ROOT / "benchmarks/host_before.py"),
            str(stage),
            str(world),
            str(steps),
            str(out),
            *FEW_PATCHES,
        ]
    else:
        files = ["--config", CONFIG, "--deepspeed_config", f"ds_configs/zero{stage or 3}.json"]
        own = ["--world", str(world), "--steps", str(steps), "--out", str(out)]
        overrides = [f"model.compile={str(compiled).lower()}", *FEW_PATCHES]
        command = [sys.executable, "-m", "ijepa_ds.bench.host_rank", way, *files, *own, *overrides]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
    found = json.loads(out.read_text())
    if way == "before":
        return found
    step, calls = (next(r for r in found["records"] if r["what"].endswith(f".{part}")) for part in ("step", "calls"))
    return {"median": step["median"], "quartiles": step["quartiles"], "calls": calls["median"]}


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of Markdown; ratios of medians to the earlier revision at the same stage and to compiled FSDP2."""
    found = {_key(row): row for row in rows}
    lines = [
        "| way | compiled | ranks | ms [quartiles] | calls | of before | of FSDP2, compiled |",
        "|---|---|---|---|---|---|---|",
    ]
    for (way, stage, compiled, ranks), row in found.items():
        name = {"plain": "plain PyTorch", "fsdp2": "FSDP2"}.get(way) or (
            f"ZeRO-{stage}, `{BEFORE}`" if way == "before" else f"**ZeRO-{stage}**"
        )
        low, high = row["quartiles"]
        before, fsdp2 = found.get(("before", stage, False, ranks)), found.get(("fsdp2", 0, True, ranks))
        ratios = [f"{row['median'] / other['median']:.2f}" if other and way == "zero" else "" for other in (before, fsdp2)]
        figures = f"{1e3 * row['median']:.0f} [{1e3 * low:.0f}, {1e3 * high:.0f}] | {row['calls']:,}"
        lines.append(f"| {name} | {'yes' if compiled else 'no'} | {ranks} | {figures} | {' | '.join(ratios)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
