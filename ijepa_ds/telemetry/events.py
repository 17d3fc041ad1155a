"""Reading of a run's scalars (`metrics.jsonl`, or TensorBoard's event files) and images."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ijepa_ds.errors import UserError
from ijepa_ds.telemetry import metrics_file
from ijepa_ds.telemetry.metrics_file import Scalars

logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it logs the end of every file
_ALL = 0  # in size_guidance: keep all points


def _events(run_dir: str | Path, sizes: dict[str, int]) -> EventAccumulator:
    if not any(Path(run_dir).glob("*tfevents*")):
        raise UserError(f"{run_dir}: no TensorBoard events here; give the run's directory (run.dir)")
    return EventAccumulator(str(run_dir), size_guidance=sizes).Reload()


def read_seconds(run_dir: str | Path, tag: str) -> np.ndarray:
    """Return the time of each point of a scalar, in seconds since 1970: float64 [n]."""
    if (Path(run_dir) / metrics_file.NAME).is_file():
        return np.array([line["time"] for line in metrics_file.read_lines(Path(run_dir)) if tag in line], dtype=np.float64)
    events = _events(run_dir, {"scalars": _ALL, "images": 1, "tensors": 1})
    return np.array([point.wall_time for point in events.Scalars(tag)], dtype=np.float64)


def read_scalars(run_dir: str | Path) -> Scalars:
    """Read all scalars of a run, without points that a resume has superseded.

    Returns:
        tag -> (steps int64 [n], values float64 [n]).

    Raises:
        ValueError: The directory has neither metrics nor an event file.
    """
    if (Path(run_dir) / metrics_file.NAME).is_file():
        return metrics_file.read_metrics(Path(run_dir))
    return _read_events(run_dir)


def _read_events(run_dir: str | Path) -> Scalars:
    events = _events(run_dir, {"scalars": _ALL, "images": 1, "tensors": 1})
    found = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        steps = np.array([point.step for point in points], dtype=np.int64)
        found[tag] = (steps, np.array([point.value for point in points], dtype=np.float64))
    return found


def lines_of_events(run_dir: Path) -> list[dict[str, float]]:
    """The scalars in event files as lines of `metrics.jsonl`: for runs begun before that file was written."""
    if not any(run_dir.glob("*tfevents*")):
        return []
    lines: dict[int, dict[str, float]] = {}
    events = _events(run_dir, {"scalars": _ALL, "images": 1, "tensors": 1})
    for tag in events.Tags()["scalars"]:
        for point in events.Scalars(tag):
            lines.setdefault(point.step, {"step": point.step, "time": point.wall_time})[tag] = point.value
    return [lines[step] for step in sorted(lines)]


def read_picture(run_dir: str | Path, tag: str) -> tuple[int, np.ndarray] | None:
    """Read the last image of a tag.

    Returns:
        (step, uint8 [H, W, 3]), or None if the tag has no image, or the directory no event file.
    """
    if not any(Path(run_dir).glob("*tfevents*")):
        return None
    events = _events(run_dir, {"scalars": 1, "images": 1, "tensors": 1})
    if tag not in events.Tags()["images"]:
        return None
    last = events.Images(tag)[-1]
    with Image.open(io.BytesIO(last.encoded_image_string), formats=("PNG",)) as image:
        return last.step, np.asarray(image.convert("RGB"))
