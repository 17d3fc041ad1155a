"""Plot of memory and step time against the number of machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from ijepa_ds.config import Config, plan_batch
from ijepa_ds.model.work import Work
from ijepa_ds.plan.hardware import GIB
from ijepa_ds.plan.report import Plan
from ijepa_ds.plan.spread import Spread
from ijepa_ds.plotting.style import INK, MUTED, TRAINED, plain_axes, save

Planner = Callable[[Work, Spread], Plan]
_COLOURS = ("#1f6feb", "#58a6ff", "#9b59b6", "#c39bd3", "#16a085", "#f39c12", "#d35400", "#c3cbd4", "#7b8794")


def ladder(cfg: Config, work: Work, spread: Spread, plan: Planner) -> list[Plan]:
    """Return plans of the run on 1, 2, 4 ... machines, with the global batch kept constant by accumulation."""
    plans, nodes = [], 1
    batch = cfg.optimization.batch_size
    group = cfg.masks.truncation_group if cfg.masks.sampler == "published" else None
    while nodes * spread.gpus <= batch and nodes <= 1024:
        if batch % (nodes * spread.gpus) == 0:
            cut = plan_batch(batch, spread.micro_batch, nodes * spread.gpus, group)
            scaled = replace(spread, nodes=nodes, micro_batch=cut.micro_batch, accumulation=cut.accumulation)
            plans.append(plan(work, scaled))
        nodes *= 2
    return plans


def write(path: Path, cfg: Config, work: Work, spread: Spread, plan: Planner) -> None:
    """Write a PNG with memory and step time for 1, 2, 4 ... machines.

    Raises:
        ValueError: The global batch is not divisible by the devices of any number of machines.
    """
    plans = ladder(cfg, work, spread, plan)
    if not plans:
        raise ValueError(
            f"--plot: {cfg.optimization.batch_size} images cannot be divided among {spread.gpus} devices a machine"
        )
    device = plans[0].device
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    places, labels = range(len(plans)), [str(one.spread.nodes) for one in plans]
    floor = [0.0] * len(plans)
    for colour, name in zip(_COLOURS, plans[0].memory.parts(), strict=True):
        heights = [one.memory.parts()[name] / GIB for one in plans]
        left.bar(places, heights, 0.7, bottom=floor, color=colour, label=name)
        floor = [low + height for low, height in zip(floor, heights, strict=True)]
    left.plot(places, [one.memory.peak / GIB for one in plans], "o", color=INK, markersize=4, label="peak")
    left.axhline(device.memory_gib, color=MUTED, linestyle=(0, (4, 3)), linewidth=1)
    left.annotate(device.name, (0, device.memory_gib), (0, 3), textcoords="offset points", fontsize=8, color=MUTED)
    plain_axes(left, "Memory a rank, GiB")
    left.legend(fontsize=7, frameon=False, ncols=2)
    right.fill_between(
        places, [p.timing.fast for p in plans], [p.timing.slow for p in plans], color=TRAINED, alpha=0.2, label="expected"
    )
    right.plot(places, [one.expected for one in plans], "o-", color=TRAINED, label="larger of host and device")
    right.plot(places, [one.timing.host.seconds for one in plans], ":", color=INK, label="host")
    right.plot(places, [one.timing.sending for one in plans], "--", color=MUTED, label="sending, hidden or not")
    right.set_yscale("log")
    plain_axes(right, "Step, seconds")
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.set_xticks(places, labels, color=INK)
        axes.set_xlabel(f"machines of {spread.gpus}", fontsize=9, color=MUTED)
    save(figure, path)
