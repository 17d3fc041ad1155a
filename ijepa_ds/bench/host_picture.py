"""Plot of the processor time of a step against the number of ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ijepa_ds.bench.host import by_way
from ijepa_ds.plotting.style import INK, MUTED, plain_axes, save

_COLOURS = {"fsdp2": "#16a085", "plain": MUTED}
_LABELS = {"fsdp2": "FSDP2", "plain": "plain PyTorch"}


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a PNG: medians with quartiles, one line for each way; plain PyTorch has no ranks and is a level."""
    rows = by_way(records)
    ranks = sorted({world for way, world in rows if way != "plain"})
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for way in dict.fromkeys(way for way, _ in rows):
        steps = {world: rows[way, world]["step"] for name, world in rows if name == way}
        worlds = sorted(steps)
        own = way.endswith("_deepspeed")
        label = _LABELS.get(way) or f"ZeRO-{way[4]}" + (", DeepSpeed's own collectives" if own else "")
        colour = _COLOURS.get(way) or ("#d35400" if own else "#1f6feb")
        if way == "plain":
            axes.axhline(1e3 * steps[1]["median"], color=colour, linestyle=(0, (4, 3)), linewidth=1, label=label)
            continue
        middle = [1e3 * steps[world]["median"] for world in worlds]
        low, high = ([1e3 * steps[world]["quartiles"][side] for world in worlds] for side in (0, 1))
        axes.fill_between(worlds, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(worlds, middle, "o-", color=colour, markersize=4, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(ranks, [f"{world:,}" for world in ranks], color=INK)
    axes.minorticks_off()
    axes.set_xlabel("ranks in the process group", fontsize=9, color=MUTED)
    plain_axes(axes, "Processor time of a step, ms")
    axes.legend(fontsize=8, frameon=False)
    save(figure, path)
