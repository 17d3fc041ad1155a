"""The event file: refused at the start where it cannot be written; later its loss is said, and the run goes on."""

import logging
import shutil
import threading
from pathlib import Path

import pytest

from ijepa_ds.telemetry.event_log import Log
from ijepa_ds.telemetry.events import read_scalars


def test_what_cannot_be_written_at_the_start_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in the way")
    with pytest.raises(ValueError, match=r"run.dir: TensorBoard's event file in .*run cannot be written"):
        Log(tmp_path / "run", 0, purge_step=1)
    Log(tmp_path / "run", 1, purge_step=1).scalars(1, {"loss": 0.5})  # not its task


def test_points_are_lost_while_the_disk_refuses_and_written_again_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # TensorBoard's thread ends with the error
    run = tmp_path / "run"
    log = Log(run, 0, purge_step=1)
    log.scalars(1, {"loss": 0.5})
    log.flush()
    kept = shutil.move(run, tmp_path / "away")
    for step in range(2, 40):  # more than its queue holds
        log.scalars(step, {"loss": 0.4})
        log.flush()
    assert caplog.text.count("training continues") == 1 and "event file" in caplog.text
    shutil.move(kept, run)
    with caplog.at_level(logging.INFO):
        log.scalars(40, {"loss": 0.3})  # still waiting
        monkeypatch.setattr(log, "_again", 0.0)
        log.scalars(41, {"loss": 0.2})
    log.close()
    assert "writable again" in caplog.text
    assert caplog.text.count("metrics.jsonl in") == 1
    assert read_scalars(run)["loss"][0].tolist() == [1, 40, 41]  # in metrics.jsonl; TensorBoard has 1 and 41
