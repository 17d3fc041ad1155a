"""Two revisions of this repository in one interleaved run, and the ratios of their times: the guard against becoming slower.

    python -m benchmarks.revisions main HEAD --model small --repeats 7

Both are checked out beside each other; their workers take turns step by step, so that a busy machine is unfair to neither. What
asks and measures is this checkout's `benchmarks/`, for both. Results are added to a file of JSON lines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.compare import PARTS, Worker, compared, in_turns
from benchmarks.sides import ROOT
from ijepa_ds.bench.record import write

MASKS = {"model": "tiny", "batch": 128, "patch": 14, "overrides": ["model.depth=1", "model.predictor.depth=1"]}


def git(*words: str) -> str:
    """Run git in this checkout and return its output.

    Raises:
        ValueError: git failed; has git's message.
    """
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_out(revision: str, place: Path) -> Path:
    """Create a worktree of a revision with this checkout's `benchmarks/`."""
    git("worktree", "add", "--detach", str(place), revision)
    shutil.rmtree(place / "benchmarks", ignore_errors=True)
    shutil.copytree(ROOT / "benchmarks", place / "benchmarks", ignore=shutil.ignore_patterns("__pycache__", "*.jsonl"))
    return place


def measure(trees: dict[str, Path], setting: dict[str, Any], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure steps and masks of both revisions, alternating."""
    records = []
    for what, own, keys in (("step", setting, PARTS), ("masks", MASKS, ("masks",))):
        workers = {}
        try:
            for name, tree in trees.items():
                workers[name] = Worker({"side": "ours"} | own, tree)
            answers = in_turns(workers, what, args.repeats, warm=4)
        finally:
            for worker in workers.values():
                worker.close()
        records += compared(what, "s", answers, keys, own)
        if what == "step":
            losses = [some[-1]["loss"] for some in answers.values()]
            print(f"{'':<4}losses {losses[0]:.6f} and {losses[1]:.6f}")
            for part in keys:
                records += compared(f"  {part}", "s", answers, [part], own)
            records += compared("  peak memory", "bytes", {n: some[-1:] for n, some in answers.items()}, ["peak"], own)
    return [item | {"what": item["what"].strip(), "clock": args.clock} for item in records]


def main() -> int:
    """Compare two revisions; exit code 1 if the second is significantly slower."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("revisions", nargs=2, metavar="REVISION", help="before and after: anything git resolves to a commit")
    parser.add_argument("--model", default="small")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--stage", type=int, default=0, help="of ZeRO")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the processor, for a shared machine")
    parser.add_argument("--worse", type=float, default=1.03, help="fail where three quarters of after / before exceed it")
    parser.add_argument("--set", nargs="*", default=[], metavar="section.key=value", help="override keys of both runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.jsonl", help="JSON lines are added here")
    args = parser.parse_args()
    os.environ["BENCH_CLOCK"] = args.clock
    commits = [git("rev-parse", "--short=12", f"{revision}^{{commit}}") for revision in args.revisions]
    if commits[0] == commits[1]:
        raise SystemExit(f"both are {commits[0]}: nothing to compare")
    setting = {"model": args.model, "batch": args.batch, "stage": args.stage, "overrides": args.set}
    trees: dict[str, Path] = {}
    with tempfile.TemporaryDirectory(prefix="revisions-") as folder:
        try:
            for commit in commits:
                trees[commit] = check_out(commit, Path(folder) / commit)
            print(f"{'':<24}{commits[0]:>16}{commits[1]:>16}{'before / after':>16}", flush=True)
            records = measure(trees, setting, args)
        finally:
            for tree in trees.values():
                git("worktree", "remove", "--force", str(tree))
    write(args.out, records)
    slower = [r["what"] for r in records if r["what"] in ("step.ratio", "masks.ratio") and r["quartiles"][1] < 1 / args.worse]
    print(f"SLOWER: {', '.join(slower)}" if slower else "not slower")
    return bool(slower)


if __name__ == "__main__":
    sys.exit(main())
