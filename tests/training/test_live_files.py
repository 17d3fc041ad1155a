"""The history of evaluations: a damaged file is kept aside, with a warning, and the run goes on."""

import json

import pytest
import torch

from ijepa_ds import machine
from ijepa_ds.errors import UserError
from ijepa_ds.training import live_eval


def test_a_whole_history_is_read(tmp_path):
    rows = [{"step": 2, "5-NN": 40.0}, {"step": 4, "5-NN": 45.0}]
    (tmp_path / "evaluations.json").write_text(json.dumps(rows))
    assert live_eval._read(tmp_path / "evaluations.json") == rows
    assert live_eval._read(tmp_path / "none.json") == []


@pytest.mark.parametrize("content", ['[{"step": 2, "5-N', "", '{"step": 2}', '[{"steps": 2}]', "[3]", "\x00\x00\x00"])
def test_a_damaged_history_is_kept_aside(tmp_path, caplog, content):
    file = tmp_path / "evaluations.json"
    file.write_text(content)
    assert live_eval._read(file) == []
    assert (tmp_path / "evaluations.json.damaged").read_text() == content and not file.exists()
    assert "is damaged" in caplog.text and "begins anew" in caplog.text


def test_an_evaluation_that_cannot_fit_is_refused(monkeypatch):
    live_eval.check_room(1 << 20, torch.device("cpu"))
    with pytest.raises(UserError, match=r"eval\.every: it needs 1048576\.0 GiB on every rank"):
        live_eval.check_room(1 << 50, torch.device("cpu"))
    half = machine.memory_bytes() // 2
    live_eval.check_room(half, torch.device("cpu"))
    monkeypatch.setenv("LOCAL_SIZE", "8")  # as DeepSpeed's launcher says it
    with pytest.raises(UserError, match="on every rank"):
        live_eval.check_room(half, torch.device("cpu"))
