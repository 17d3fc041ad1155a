"""Ours against the plain implementation, in turns: `python -m benchmarks.compare --models small base --out results.jsonl`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.sides import ROOT
from ijepa_ds.bench.record import record, shown, write

PARTS = ("forward+backward", "optimizer", "ema")


class Worker:
    """A side in a process of its own; `python_path`: the checkout whose code it runs."""

    def __init__(self, setting: Mapping[str, Any], python_path: Path = ROOT) -> None:
        own = [str(python_path)] if python_path == ROOT else [str(python_path), str(ROOT)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(own)}
        command = [sys.executable, "-m", "benchmarks.worker", json.dumps(setting)]
        # not in ROOT: with -m the current folder comes before PYTHONPATH
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=python_path
        )
        self._answer()

    def ask(self, what: str) -> dict[str, float]:
        """Have it work; its answer."""
        assert self._process.stdin
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended with exit code {self._process.wait()}; its reason stands above")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def in_turns(workers: Mapping[str, Worker], what: str, repeats: int, warm: int = 1) -> dict[str, list[dict[str, float]]]:
    """The answers of all workers to the same request, asked one after the other, in alternating order."""
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for repeat in range(warm + repeats):
        for name in list(workers)[:: 1 if repeat % 2 else -1]:
            answer = workers[name].ask(what)
            if repeat >= warm:
                answers[name].append(answer)
    return answers


def compared(
    what: str, unit: str, answers: Mapping[str, Sequence[Mapping[str, float]]], keys: Sequence[str], config: dict[str, Any]
) -> list[dict[str, Any]]:
    """Records of each side (the sum of `keys`), and of the first to the second, repeat by repeat."""
    sums = {name: [sum(answer[key] for key in keys) for answer in some] for name, some in answers.items()}
    records = [record(f"{what}.{name}", unit, some, config) for name, some in sums.items()]
    first, second = sums.values()
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    records.append(record(f"{what}.ratio", "x", ratios, config | {"of": list(sums)}))
    medians = [statistics.median(some) for some in sums.values()]
    low, high = records[-1]["quartiles"]
    line = f"{what:<24}" + "".join(f"{shown(median, unit):>16}" for median in medians)
    print(f"{line}{records[-1]['median']:>10.2f}  [{low:.2f}, {high:.2f}]", flush=True)
    return records


def measure(model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Step, real steps, and memory of one model."""
    setting = {name: getattr(args, name) for name in ("batch", "images", "stage", "overrides")} | {"model": model}
    workers = {side: Worker({"side": side} | setting) for side in ("baseline", "ours")}
    setting["images"] = Path(args.images).name  # in the records: no path of this machine
    try:
        print(f"\n{model}, batch {args.batch}, ZeRO-{args.stage}: baseline, ours, ratio [quartiles]", flush=True)
        answers = in_turns(workers, "step", args.repeats, warm=4)  # until the heap has grown
        losses = [answers[side][-1]["loss"] for side in workers]
        print(f"losses after {args.repeats + 4} steps: {losses[0]:.6f} and {losses[1]:.6f}")
        if abs(losses[0] - losses[1]) > 1e-3 * losses[0]:
            raise RuntimeError("the two sides do not compute the same: their losses differ")
        records = compared("step", "s", answers, PARTS, setting)
        for part in PARTS:
            records += compared(part, "s", answers, [part], setting)
        records += compared("optimizer+ema", "s", answers, ["optimizer", "ema"], setting)
        records += compared("peak memory", "bytes", {side: some[-1:] for side, some in answers.items()}, ["peak"], setting)
        rates = [workers["ours"].ask("peak_rate") for _ in range(5)]
        floor = rates[0]["flops"] / max(rate["rate"] for rate in rates)
        records.append(record("floor", "s", [floor], setting, flops=rates[0]["flops"]))
        rate = max(rate["rate"] for rate in rates)
        print(f"{'matrix products alone':<24}{'':>16}{shown(floor, 's'):>16}   at {rate / 1e9:.0f} GFLOP/s")
        if args.images:
            records += compared("jpegs to target", "s", in_turns(workers, "real", max(3, args.repeats // 2)), ["real"], setting)
        return [item | {"clock": args.clock} for item in records]
    finally:
        for worker in workers.values():
            worker.close()


def measure_masks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Masks of 128 images on the 16 x 16 grid."""
    setting = {"model": "tiny", "batch": 128, "patch": 14, "overrides": ["model.depth=1", "model.predictor.depth=1"]}
    workers = {side: Worker({"side": side} | setting) for side in ("baseline", "ours")}
    try:
        print("\nmasks of 128 images, 16 x 16 patches: baseline, ours, ratio [quartiles]", flush=True)
        return compared("masks", "s", in_turns(workers, "masks", 3 * args.repeats, warm=3), ["masks"], setting)
    finally:
        for worker in workers.values():
            worker.close()


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["small", "base"], help="sizes of the encoder")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--stage", type=int, default=0, help="of ZeRO, for ours")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--images", default="", help="folder of JPEGs, for real steps")
    parser.add_argument("--no-masks", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.jsonl", help="JSON lines are added here")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="of ours")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the processor, for a shared machine")
    args = parser.parse_intermixed_args()
    os.environ["BENCH_CLOCK"] = args.clock  # of the workers
    for model in args.models:
        write(args.out, measure(model, args))
    if not args.no_masks:
        write(args.out, measure_masks(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
