"""`ijepa-ds bench fit`: memory and time of a few real steps on this machine."""

from __future__ import annotations

import argparse
import math
from typing import Any

from ijepa_ds.arguments import check_at_least
from ijepa_ds.bench.launch import report_ranks
from ijepa_ds.bench.memory import PUBLISHED

GIB, MIB = 2**30, 2**20


def run(args: argparse.Namespace) -> int:
    """Start the ranks and print the figures."""
    check_at_least(args, ranks=1, steps=4)  # ZeRO-3 learns the order of the modules in the first two steps
    return report_ranks(args, report)


def report(ranks: list[dict[str, Any]]) -> str:
    """The figures as text."""
    one, world = ranks[0], len(ranks)
    parameters = sum(one["parameters"].values())
    peak = sum(r["resident_peak"] for r in ranks)
    held = max(sum(rank["held"].values()) for rank in ranks)
    finite = all(math.isfinite(x) for x in one["losses"] + one["norms"])
    lines = [
        "",
        one["describe"],
        f"losses: {', '.join(f'{x:.6f}' for x in one['losses'])}{'' if finite else '   NOT FINITE'}",
        "",
        "memory, largest rank                          measured   formula",
        f"  model state between steps, MiB             {held / MIB:9.0f} {one['state_bytes'] / MIB:9.0f}",
        f"  all tensors then (buckets, gathered)       {_most(ranks, 'live_bytes') / MIB:9.0f}",
        f"  published way, {PUBLISHED} bytes a parameter          {'':>9} {parameters * PUBLISHED / MIB:9.0f}",
        f"  process before the model, MiB              {_most(ranks, 'resident_before') / MIB:9.0f}",
        f"  process at most while it starts            {_most(ranks, 'resident_peak_start') / MIB:9.0f}",
        f"  process once started                       {_most(ranks, 'resident_started') / MIB:9.0f}",
        f"  process at most in all                     {_most(ranks, 'resident_peak') / MIB:9.0f}",
        f"all ranks together at most: {peak / GIB:.2f} GiB resident"
        + (f", {sum(r['cuda_peak'] for r in ranks) / GIB:.2f} GiB on GPUs" if "cuda_peak" in one else ""),
        "",
        f"seconds a step, {one['accumulation']} x {one['micro_batch']} images a rank: "
        + ", ".join(f"{k} {_most(ranks, 'seconds', k):.3f}" for k in one["seconds"]),
    ]
    kind = "processor" if "processor" in one else "seconds"
    if kind == "processor":
        lines.append("    of the processor: " + ", ".join(f"{k} {_most(ranks, kind, k):.3f}" for k in one[kind]))
    step = sum(_most(ranks, kind, phase) for phase in one[kind])
    ema = _most(ranks, kind, "ema")
    lines.append(f"EMA update: {100 * ema / step:.2f} % of a step" + _loop(one, ema))
    lines += ["", f"collectives of a step, {world} ranks                calls       MiB"]
    moved = sum(t["moved"] for t in one["traffic"].values())
    for phase, traffic in one["traffic"].items():
        for name, calls in sorted(traffic["calls"].items()):
            lines.append(f"  {phase:<10} {name:<28} {calls:8d} {traffic['bytes'][name] / MIB:9.1f}")
    least = one["least_moved"] / MIB
    lines.append(f"  moved (all-reduces twice) {moved / MIB:.1f} MiB, least possible {least:.1f}: {moved / MIB / least:.3f} x")
    return "\n".join(lines)


def _most(ranks: list[dict[str, Any]], *keys: str) -> float:
    values = []
    for rank in ranks:
        value: Any = rank
        for key in keys:
            value = value[key]
        values.append(value)
    return max(values)


def _loop(one: dict[str, Any], ema: float) -> str:
    loop = one["loop_seconds"]
    published = f"; published loop over the whole encoder {loop * 1e3:.1f} ms" if loop else ""
    return f" ({ema * 1e3:.1f} ms{published})"
