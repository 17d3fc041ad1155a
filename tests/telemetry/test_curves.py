"""Curves survive restarts: with a clock that is behind, in `metrics.jsonl`, and in the mean of a window of steps."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ijepa_ds.errors import UserError
from ijepa_ds.telemetry.event_log import Log
from ijepa_ds.telemetry.events import read_scalars, read_seconds
from ijepa_ds.telemetry.metrics_file import NAME, MetricsFile


def start(run: Path, first: int, last: int, offset: float) -> None:
    """A start that logs the steps from `first` to `last`; the loss is the step plus `offset`."""
    log = Log(run, rank=0, purge_step=first)
    for step in range(first, last + 1):
        log.scalars(step, {"loss": step + offset})
        log.scalars(step, {"probe/x": 1.0})
    log.close()


def in_tensorboard(run: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return [(point.step, point.value) for point in events.Scalars("loss")]


@pytest.mark.parametrize("behind", [0.0, 5.0, 86400.0])
def test_points_of_a_machine_whose_clock_is_behind(behind: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = time.time
    start(tmp_path, 1, 8, 0.0)
    monkeypatch.setattr(time, "time", lambda: now() - behind)
    start(tmp_path, 6, 12, 0.5)
    monkeypatch.setattr(time, "time", lambda: now() - 2 * behind)
    start(tmp_path, 11, 14, 0.25)
    expected = [*((s, s) for s in range(1, 6)), *((s, s + 0.5) for s in range(6, 11)), *((s, s + 0.25) for s in range(11, 15))]
    assert in_tensorboard(tmp_path) == expected
    steps, values = read_scalars(tmp_path)["loss"]
    assert list(zip(steps.tolist(), values.tolist(), strict=True)) == expected


def test_one_line_a_step(tmp_path: Path) -> None:
    start(tmp_path, 1, 3, 0.0)
    lines = [json.loads(text) for text in (tmp_path / NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(line.keys() == {"step", "time", "loss", "probe/x"} for line in lines)


def test_a_resume_cuts_what_it_makes_again(tmp_path: Path) -> None:
    start(tmp_path, 1, 5, 0.0)
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": 6, "time": 1')  # its writer was killed
    assert read_scalars(tmp_path)["loss"][0].tolist() == [1, 2, 3, 4, 5]
    file_ = MetricsFile(tmp_path, first_step=4)
    file_.write(4, {"loss": float("nan")})
    file_.write(4, {"more": 1})
    steps, values = read_scalars(tmp_path)["loss"]
    assert steps.tolist() == [1, 2, 3, 4] and np.isnan(values[3]) and read_scalars(tmp_path)["more"][0].tolist() == [4]
    assert len(read_seconds(tmp_path, "loss")) == 4


def test_runs_begun_without_the_file_get_their_earlier_points(tmp_path: Path) -> None:
    start(tmp_path, 1, 5, 0.0)
    (tmp_path / NAME).unlink()
    assert read_scalars(tmp_path)["loss"][0].tolist() == [1, 2, 3, 4, 5]  # from the event file
    start(tmp_path, 4, 6, 0.5)
    assert [json.loads(text)["loss"] for text in (tmp_path / NAME).read_text().splitlines()] == [1, 2, 3, 4.5, 5.5, 6.5]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"step": 1, "time": 1, "loss": 1}\nnonsense\n{"step": 2, "time": 1, "loss": 1}\n')
    with pytest.raises(UserError, match=rf"{NAME}:2: damaged"):
        read_scalars(tmp_path)


def test_half_a_line_of_a_full_disk_is_replaced(tmp_path: Path) -> None:
    file_ = MetricsFile(tmp_path, first_step=0)
    file_.write(1, {"loss": 1.0})
    with (tmp_path / NAME).open("a") as torn:
        torn.write('{"step": 2, "ti')  # a write that failed in the middle
    file_.write(3, {"loss": 3.0})
    file_.write(3, {"more": 1.0})
    assert read_scalars(tmp_path)["loss"][0].tolist() == [1, 3]
