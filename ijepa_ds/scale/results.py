"""Results of a ladder: one row per rung as JSON and CSV, and the fitted laws."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ijepa_ds import config
from ijepa_ds.errors import UserError
from ijepa_ds.model.flops import flops_of
from ijepa_ds.model.work import work_of
from ijepa_ds.scale.execute import ATTEMPTS, RESULT, done, scored
from ijepa_ds.scale.ladder import Ladder
from ijepa_ds.scale.power import Law, UnfitError, fit
from ijepa_ds.scale.rung import Rung
from ijepa_ds.telemetry.events import read_scalars
from ijepa_ds.visualize.report_runs import read_json

# Law -> columns that are its variables.
LAWS = {
    "parameters and images": ("parameters", "images"),
    "FLOPs": ("flops",),
    "device-hours": ("device_hours",),
    "processor-hours": ("processor_hours",),
}
_LAST = 0.1  # a run's loss is the mean over this last share of its steps


def row_of(ladder: Ladder, rung: Rung, attempts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of a rung; None for unknown values.

    `device_hours`: wall time times devices of all training attempts, with starts and lost work.
    `processor_hours`: processor time of their processes on this machine. `steady_hours`: steps at the median speed
    times devices, without starts and saving.
    """
    work = work_of(rung.cfg)
    flops = flops_of_run(rung)
    complete = done(rung)
    row: dict[str, Any] = {
        "rung": rung.name,
        "done": complete,
        "parameters": work.count("encoder"),
        "predictor_parameters": work.count("predictor"),
        "images": rung.images,
        "steps": rung.steps,
        "flops_per_image": flops / rung.images,
        "flops": flops,
    }
    world = read_json(rung.folder / "environment.json").get("world_size", rung.nodes * rung.gpus)
    row |= {"devices": world, "loss": None, "steady_hours": None, "device_hours": None, "processor_hours": None}
    if complete:
        scalars = read_scalars(rung.folder)
        steps, losses = scalars["loss"]
        last = losses[steps > (1 - _LAST) * rung.steps]
        last = last[np.isfinite(last)]  # a skipped step has none
        if not len(last):
            raise UserError(f"{rung.folder}: no loss of the last {_LAST:.0%} of the steps is finite: train {rung.name} again")
        row["loss"] = float(np.mean(last))
        row["steady_hours"] = float(np.median(scalars["speed/seconds_per_step"][1])) * rung.steps * world / 3600
        row |= _hours([line for line in attempts if line["rung"] == rung.name and line["what"] == "train"], world)
    evaluated = complete and ladder.evaluation is not None and scored(rung, ladder.evaluation)
    row["scores"] = read_json(rung.folder / RESULT)["scores"] if evaluated else {}
    return row


def flops_of_run(rung: Rung) -> float:
    """FLOPs of matrix products of all steps; steps on small crops (`data.early_crop_size`) count at their size."""
    early = min(rung.cfg.data.early_steps, rung.steps)
    total = flops_of(work_of(rung.cfg)).model * (rung.steps - early)
    if early:
        total += flops_of(work_of(config.at_step(rung.cfg, 0))).model * early
    return total * rung.cfg.optimization.batch_size


def _hours(lines: Sequence[Mapping[str, Any]], world: int) -> dict[str, float | None]:
    """Of a rung's training; None where an attempt has no end, or there is no attempt: it was trained by other means."""
    ended = [line for line in lines if "seconds" in line]
    if not ended or 2 * len(ended) != len(lines):
        return {"device_hours": None, "processor_hours": None}
    return {
        "device_hours": sum(line["seconds"] for line in ended) * world / 3600,
        "processor_hours": sum(line["cpu_seconds"] for line in ended) / 3600,
    }


def collect(ladder: Ladder) -> dict[str, Any]:
    """Rows of all rungs, the fitted laws as plain values, and what is missing."""
    path = ladder.out / ATTEMPTS
    attempts = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    rows = [row_of(ladder, rung, attempts) for rung in ladder.rungs]
    what = f"{ladder.evaluation.score}, error in percent" if ladder.evaluation else "loss"
    return {"ladder": str(ladder.path), "measure": what, "rungs": rows}


def errors(ladder: Ladder, rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """What the laws are fitted to: 100 less the score, or the loss where there is no evaluation; None: not known yet."""
    if ladder.evaluation is None:
        return [row["loss"] for row in rows]
    score = ladder.evaluation.score
    return [100 - row["scores"][score] if score in row["scores"] else None for row in rows]


def laws(ladder: Ladder, rows: Sequence[Mapping[str, Any]]) -> dict[str, Law | str]:
    """Every law of `LAWS`, or why there is none."""
    measured, found = errors(ladder, rows), dict[str, Law | str]()
    for title, names in LAWS.items():
        known = [
            ([row[name] for name in names], error)
            for row, error in zip(rows, measured, strict=True)
            if error is not None and all(row[name] for name in names)
        ]
        try:
            if not known:
                raise UnfitError("no finished rung tells it")
            found[title] = fit(names, np.array([x for x, _ in known]), np.array([y for _, y in known]))
        except UnfitError as error:
            found[title] = str(error)
    return found


def plain(law: Law | str) -> dict[str, Any]:
    """A law as JSON takes it."""
    if isinstance(law, str):
        return {"unfit": law}
    return {
        "irreducible": law.offset,
        "irreducible_95": law.offset_range,
        "log_scale": law.scale,
        "exponents": dict(zip(law.names, law.exponents, strict=True)),
        "exponents_95": {name: law.interval(index) for index, name in enumerate(law.names)},
        "spread_of_log_error": law.spread,
        "points": law.freedom + len(law.covariance),
        "largest": dict(zip(law.names, law.largest, strict=True)),
        "reach": law.reach(),
        "notes": law.notes(),
    }


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line a rung; scores are columns."""
    flat = [{k: v for k, v in row.items() if k != "scores"} | row["scores"] for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()
