"""`ijepa-ds bench checkpoint`: times asynchronous and synchronous saves in one run."""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from ijepa_ds.arguments import check_at_least
from ijepa_ds.bench.launch import report_ranks


def run(args: argparse.Namespace) -> int:
    """Start the ranks and print the figures."""
    check_at_least(args, ranks=1, saves=1)
    args.steps = args.saves
    return report_ranks(args, report)


def report(ranks: list[dict[str, Any]]) -> str:
    """The figures as text: medians over the saves, of the slowest rank."""

    def most(key: str) -> float:
        return max(median(rank[key]) for rank in ranks)

    one, total = ranks[0], sum(ranks[0]["bytes"])
    quiet, stall, synchronous, safe = most("quiet"), most("stall"), most("synchronous"), most("safe")
    behind = max(median([second for save in rank["behind"] for second in save]) for rank in ranks)
    extra = max(median([sum(save) - len(save) * quiet for save in rank["behind"]]) for rank in ranks) + stall
    raw = sum(rank["raw"]["bytes"] for rank in ranks) / max(rank["raw"]["seconds"] for rank in ranks)
    shares = ", ".join(f"{size / 1e6:,.1f}" for size in one["bytes"][:8]) + (", ..." if len(one["bytes"]) > 8 else "")
    return "\n".join(
        [
            "",
            one["describe"],
            f"checkpoint: {total / 1e6:,.1f} MB = {total / one['parameters']:.3f} bytes a parameter; of each rank: {shares} MB",
            "",
            f"median of {len(one['stall'])} saves of each kind            seconds    steps",
            f"a step while nothing is saved               {quiet:9.3f}",
            f"save behind the steps: the step waits       {stall:9.3f} {stall / quiet:8.2f}",
            f"    steps until it is safe, each            {behind:9.3f} {behind / quiet:8.2f}",
            f"    all time lost, those steps included     {extra:9.3f} {extra / quiet:8.2f}",
            f"    safe after                              {safe:9.3f} {safe / quiet:8.2f}",
            f"save that is waited for: the step waits     {synchronous:9.3f} {synchronous / quiet:8.2f}",
            f"the step waits {synchronous / stall:.1f} times less for a save behind it",
            f"written, flushed, read back, compared, checksummed: {total / synchronous / 1e6:,.0f} MB/s when waited for, "
            f"{total / safe / 1e6:,.0f} behind; the disk alone (write and flush): {raw / 1e6:,.0f} MB/s",
        ]
    )
