"""Data of one run for a report, read from its directory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ijepa_ds import config
from ijepa_ds.config import Config
from ijepa_ds.telemetry.events import Scalars, read_scalars, read_seconds
from ijepa_ds.telemetry.health import Alarm, read_alarms


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Attributes:
        path: its directory.
        name: its name in the report.
        config: as resolved.
        scalars: tag -> (steps, values).
        facts: name -> text, in order: time, throughput, memory.
        scores: "where: score" -> text, percent.
        alarms: oldest first.
    """

    path: Path
    name: str
    config: Config
    scalars: Scalars
    facts: dict[str, str]
    scores: dict[str, str]
    alarms: list[Alarm]


def read_run(path: Path, name: str) -> Run:
    """Read the directory of a finished or running training.

    Raises:
        ValueError: not a run directory, no events, or damaged files.
    """
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path}: not a run directory (no config.yaml in it)")
    cfg = config.load(path / "config.yaml", [])
    scalars = read_scalars(path)
    if "loss" not in scalars:
        raise ValueError(f"{path}: its events have no 'loss' yet; wait for the first point (run.log_every)")
    facts = _facts(path, cfg, scalars, read_seconds(path, "loss"))
    return Run(path, name, cfg, scalars, facts, dict(_scores(path)), read_alarms(path))


def _facts(path: Path, cfg: Config, scalars: Scalars, seconds: np.ndarray) -> dict[str, str]:
    world = read_json(path / "environment.json").get("world_size")
    step, batch = int(scalars["loss"][0][-1]), cfg.optimization.batch_size
    facts = {
        "state": "finished" if (path / "completed.json").is_file() else "not finished",
        "steps": f"{step:,}",
        "images seen": f"{step * batch:,}",
        "ranks": "unknown" if world is None else str(world),
        "last loss": f"{scalars['loss'][1][-1]:.4f}",
    }
    if "speed/images_per_second" in scalars:
        rate = float(np.median(scalars["speed/images_per_second"][1]))
        facts["images a second (median)"] = f"{rate:,.0f}"
        facts["time at that rate"] = _duration(step * batch / rate)
        if world is not None:
            facts["rank-hours"] = f"{step * batch / rate * world / 3600:.2f}"
    facts["from first to last point, pauses included"] = _duration(float(seconds[-1] - seconds[0]))
    shares = {
        "speed/mfu": "MFU, of the data sheet (median)",
        "speed/matmul_share": "share of the measured product (median)",
        "time/data_wait": "share of the time waiting for images (median)",
    }
    for tag, label in shares.items():
        if tag in scalars:
            facts[label] = f"{100 * float(np.median(scalars[tag][1])):.1f} %"
    if "memory/peak_gib" in scalars:
        facts["memory of rank 0, peak"] = f"{scalars['memory/peak_gib'][1].max():.2f} GiB"
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; empty if there is no file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from error


def _scores(path: Path) -> Iterator[tuple[str, str]]:
    """Scores of every `result.json` below the run, with those of the untrained encoder."""
    for file in sorted(path.rglob("result.json")):
        result = read_json(file)
        scores = result.get("scores")
        if not isinstance(scores, dict):
            continue
        baseline = (result.get("baseline") or {}).get("scores", {})
        folder = file.parent.relative_to(path).as_posix()
        for name, value in scores.items():
            if not isinstance(value, int | float):
                continue
            before = f" (untrained {baseline[name]:.1f})" if isinstance(baseline.get(name), int | float) else ""
            yield f"{folder}: {name}", f"{value:.1f}{before}"
