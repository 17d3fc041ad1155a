"""`ijepa-ds bench state`: model state of a rank at every ZeRO stage, measured, by formula, and of the published code."""

from __future__ import annotations

import argparse
from typing import Any

from ijepa_ds.arguments import check_at_least
from ijepa_ds.bench.launch import report_ranks
from ijepa_ds.bench.memory import PUBLISHED

MIB = 2**20


def run(args: argparse.Namespace) -> int:
    """Start the ranks and print the figures."""
    check_at_least(args, ranks=1)
    args.steps = sum(1 << stage for stage in set(args.stages))
    return report_ranks(args, report)


def report(ranks: list[dict[str, Any]]) -> str:
    """The figures as text: MiB of the rank with the most state."""
    parts = ("weights", "target", "masters", "moments", "EMA")
    lines = [
        "",
        f"{ranks[0]['model']} on {len(ranks)} ranks: MiB of the rank that holds most",
        f"stage {''.join(f'{part:>9}' for part in parts)}    state  formula  off  {PUBLISHED} bytes a parameter   "
        "start: peak  state + block",
    ]
    for stage in ranks[0]["stages"]:
        found = [rank["stages"][stage] for rank in ranks]
        most = max(found, key=lambda figures: sum(figures["held"].values()))
        sizes = [most["held"][part] for part in parts]
        state, formula = sum(sizes), most["formula"]
        start = max(found, key=lambda figures: figures["start_peak"])
        lines.append(
            f"{stage:5} {''.join(f'{size / MIB:9.0f}' for size in sizes)}{state / MIB:9.0f}{formula / MIB:9.0f}"
            f"{100 * (state / formula - 1):+5.1f} %{most['published'] / MIB:20.0f}   "
            f"{start['start_peak'] / MIB:11.0f}{(state + most['block']) / MIB:15.0f}"
        )
    return "\n".join(lines)
