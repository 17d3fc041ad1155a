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

PICTURES = ("segment", "depth", "neighbours")  # of evaluations


@dataclass(frozen=True)
class Run:
    """One run of a report.

    Attributes:
        path: its directory.
        name: its name in the report.
        config: as resolved.
        scalars: tag -> (steps, values).
        facts: name -> text, in order: time, throughput, memory.
        scores: "where: score" -> text; in percent, except depths and ranks.
        drawn: title -> PNG, that evaluations drew: segmentations, depth maps, neighbours.
        alarms: oldest first.
    """

    path: Path
    name: str
    config: Config
    scalars: Scalars
    facts: dict[str, str]
    scores: dict[str, str]
    drawn: dict[str, Path]
    alarms: list[Alarm]


def read_run(path: Path, name: str) -> Run:
    """Read the directory of a finished or running training.

    Raises:
        ValueError: not a run directory, no events, or damaged files.
    """
    if not (path / "config.yaml").is_file():
        raise ValueError(f"{path}: not a run directory (no config.yaml in it)")
    cfg = config.stored(path / "config.yaml")
    scalars = read_scalars(path)
    if "loss" not in scalars:
        raise ValueError(f"{path}: its events have no 'loss' yet; wait for the first point (run.log_every)")
    facts = _facts(path, cfg, scalars, read_seconds(path, "loss"))
    return Run(path, name, cfg, scalars, facts, *_evaluations(path), read_alarms(path))


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


def _evaluations(path: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """Scores of every `result.json` below the run, with those of its baselines, and the pictures beside it."""
    scores: dict[str, str] = {}
    drawn: dict[str, Path] = {}
    for file in sorted(path.rglob("result.json")):
        result, folder = read_json(file), file.parent.relative_to(path).as_posix()
        if not isinstance(result.get("scores"), dict):
            continue
        scores |= {f"{folder}: {name}": text for name, text in _score_texts(result)}
        pictures = {f"{folder}: {name}": file.parent / f"{name}.png" for name in PICTURES}
        drawn |= {title: picture for title, picture in pictures.items() if picture.is_file()}
    return scores, drawn


def _score_texts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Each score, and in brackets that of each baseline."""
    first, others = result.get("baseline") or {}, result.get("baselines") or {}
    others = others or ({first.get("which", "untrained"): first} if first else {})
    for name, value in result["scores"].items():
        if not isinstance(value, int | float):
            continue
        digits = 3 if result.get("task") == "depth" and name in result.get("unranked", ()) else 1
        known = {which: other.get("scores", {}).get(name) for which, other in others.items()}
        before = ", ".join(f"{which} {score:.{digits}f}" for which, score in known.items() if isinstance(score, int | float))
        yield name, f"{value:.{digits}f}" + (f" ({before})" if before else "")
