"""A ladder's results as text: rungs, laws, and the prediction for the next rung."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ijepa_ds.scale.ladder import Ladder


def text(whole: Ladder, found: Mapping[str, Any]) -> str:
    """The content of `results.json` as text."""
    return "\n".join([*_rows(whole, found["rungs"]), "", *_laws(found), *_next(whole, found["next"])])


def _rows(whole: Ladder, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    score = whole.evaluation.score if whole.evaluation else None
    wide = max(len(row["rung"]) for row in rows)
    head = f"{'rung':<{wide}} {'parameters':>13} {'images':>11} {'FLOPs':>9} {'loss':>8} {score or '':>8} "
    lines = [head + f"{'device-h':>9} {'steady':>9} {'processor-h':>11}"]
    for row in rows:
        if not row["done"]:
            lines.append(f"{row['rung']:<{wide}} {row['parameters']:>13,} {row['images']:>11,} {row['flops']:9.2e} not done")
            continue
        lines.append(
            f"{row['rung']:<{wide}} {row['parameters']:>13,} {row['images']:>11,} {row['flops']:9.2e} {row['loss']:8.4f} "
            f"{_number(row['scores'].get(score), '.2f'):>8} {_number(row['device_hours'], '.4g'):>9} "
            f"{_number(row['steady_hours'], '.4g'):>9} {_number(row['processor_hours'], '.4g'):>11}"
        )
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _laws(found: Mapping[str, Any]) -> list[str]:
    lines = [f"laws of the {found['measure']}:"]
    for title, law in found["laws"].items():
        if "unfit" in law:
            lines.append(f"  {title}: {law['unfit']}")
            continue
        terms = [
            f"{name}^-{value:.4f} ({law['exponents_95'][name][0]:.4f} to {law['exponents_95'][name][1]:.4f})"
            for name, value in law["exponents"].items()
        ]
        first = f"{law['irreducible']:.3g} + " if law["irreducible"] else ""
        lines.append(f"  {title}: {first}{math.exp(law['log_scale']):.4g} x {' x '.join(terms)}, {law['points']} points")
        lines.append(f"    {_reach(law)}")
        lines += [f"    {note}" for note in law["notes"]]
    return lines


def _reach(law: Mapping[str, Any]) -> str:
    largest = " and ".join(f"{value:.3g} {name}" for name, value in law["largest"].items())
    if law["reach"] <= 1:
        return f"do not extrapolate: the 95 % band is wider than +-10 % at {largest} already"
    return f"extrapolate to {law['reach']:.2g} times {largest} at most: there the 95 % band reaches +-10 %"


def _next(whole: Ladder, prediction: Mapping[str, Any] | None) -> list[str]:
    if prediction is None:
        return []
    hours = " to ".join(f"{value:.3g}" for value in prediction["device_hours_planned"])
    point = prediction["point"]
    lines = ["", f"next rung: {point['parameters']:,} parameters, {point['images']:,} images: {hours} device-hours"]
    if prediction["measured_to_planned"]:
        low, high = prediction["measured_to_planned"]
        lines[-1] += f" by plan; the rungs so far took {low:.2g} to {high:.2g} times the plan's slow end"
    for title, value in prediction["expected"].items():
        error, ends = value["error"], value["one_run_95"]
        shown = [error, *ends] if not whole.evaluation else [100 - error, *(100 - end for end in reversed(ends))]
        lines.append(f"  by {title}: {shown[0]:.3g} (one run, 95 %: {shown[1]:.3g} to {shown[2]:.3g})")
    return lines
