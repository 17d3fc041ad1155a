"""Plans of all rungs, and predicted score and cost of the next one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ijepa_ds.model.work import work_of
from ijepa_ds.plan import report
from ijepa_ds.plan.hardware import GB, GIB, TERA, device_of
from ijepa_ds.plan.report import Plan
from ijepa_ds.plan.spread import spread_of
from ijepa_ds.scale.ladder import Ladder
from ijepa_ds.scale.power import Law
from ijepa_ds.scale.results import LAWS, flops_of_run
from ijepa_ds.scale.rung import Rung


def plans_of(rungs: Sequence[Rung]) -> list[Plan]:
    """Plan every rung; each type of device is looked up or measured once."""
    devices = {(rung.gpu, rung.gpus): None for rung in rungs}
    known = {key: device_of(*key) for key in devices}
    return [
        report.plan_of(
            rung.cfg,
            work_of(rung.cfg),
            spread_of(rung.ds_config, rung.batch, rung.nodes, rung.gpus),
            known[rung.gpu, rung.gpus],
            rung.steps,
        )
        for rung in rungs
    ]


def to_dict(rung: Rung, plan: Plan) -> dict[str, Any]:
    """`report.to_dict` with the rung's name, images and FLOPs."""
    return {"rung": rung.name, "images": rung.images, "flops": flops_of_run(rung)} | report.to_dict(plan)


def table(rungs: Sequence[Rung], plans: Sequence[Plan]) -> str:
    """A text table with one line per rung and the sum."""
    wide = max(len(rung.name) for rung in rungs)
    lines = [
        f"{'rung':<{wide}}  {'encoder':>9} {'GFLOP/img':>9} {'images':>9} {'EFLOP':>9}  {'machine':<18} {'GiB':>6}     "
        f"{'MFU %':>7} {'days':>15} {'device-hours':>19}  checkpoint"
    ]
    sums = [0.0, 0.0]
    for rung, plan in zip(rungs, plans, strict=True):
        hours = plan.hours() or (math.nan, math.nan)
        each = [hour * plan.spread.world for hour in hours]
        sums = [total + value for total, value in zip(sums, each, strict=True)]
        machine = f"{rung.nodes} x {rung.gpus} {plan.device.name.split()[0]}"
        lines.append(
            f"{rung.name:<{wide}}  {_count(plan.work.count('encoder')):>9} {plan.flops.model / GB:9.4g} "
            f"{_count(rung.images):>9} {flops_of_run(rung) / TERA / 1e6:9.3g}  {machine:<18} "
            f"{plan.memory.peak / GIB:6.1f} "
            f"{'fits' if plan.fits else 'NOT!'} {100 * plan.timing.mfu[2]:3.0f}-{100 * plan.timing.mfu[1]:.0f}"
            f" {_range([hour / 24 for hour in hours]):>15} {_range(each):>19}  {plan.checkpoint_bytes / GB:.3g} GB"
        )
    return "\n".join([*lines, f"{'all':<{wide}}  {_range(sums):>93} device-hours"])


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.0f}"


def _range(values: Sequence[float]) -> str:
    return " to ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values)


def predict(ladder: Ladder, rows: Sequence[Mapping[str, Any]], laws: Mapping[str, Law | str]) -> dict[str, Any] | None:
    """Predict score (by each law) and cost (by the plan) of the next rung; None if the ladder has no `next`.

    `measured_to_planned` is the ratio of measured hours to the plan's upper estimate for finished rungs. Where the plan's
    efficiencies do not fit the machine, the plan times this ratio is the better estimate.
    """
    if ladder.next is None:
        return None
    *plans, plan = plans_of([*ladder.rungs, ladder.next])
    hours = plan.hours()
    assert hours
    point = {
        "parameters": plan.work.count("encoder"),
        "images": ladder.next.images,
        "flops": flops_of_run(ladder.next),
    }
    ratios = [
        row["device_hours"] / (known[1] * other.spread.world)
        for row, other in zip(rows, plans, strict=True)
        if row["device_hours"] and (known := other.hours())
    ]
    expected = {}
    for title, law in laws.items():
        if isinstance(law, Law) and set(LAWS[title]) <= point.keys():
            bands = law.predict(np.array([[point[name] for name in LAWS[title]]], float))
            expected[title] = {
                "error": float(bands.value[0]),
                "band_95": [float(bands.low[0]), float(bands.high[0])],
                "one_run_95": [float(bands.low_run[0]), float(bands.high_run[0])],
            }
    return {
        "point": point,
        "plan": to_dict(ladder.next, plan),
        "device_hours_planned": [hour * plan.spread.world for hour in hours],
        "measured_to_planned": [min(ratios), max(ratios)] if ratios else None,
        "expected": expected,
    }
