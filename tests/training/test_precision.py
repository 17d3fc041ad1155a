"""model.precision: auto is measured once, at a fresh start, and kept when a run continues."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ijepa_ds import config
from ijepa_ds.checkpoint import run_dir
from ijepa_ds.config import Config
from ijepa_ds.model import cpu
from ijepa_ds.training import precision
from tests.dist import jobs

CPU = torch.device("cpu")
DS_CONFIG: dict[str, Any] = {"gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1}}


def auto(folder: Path, **run: Any) -> Config:
    cfg = jobs.tiny_config("auto")
    return replace(cfg, run=replace(cfg.run, dir=str(folder), **run))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Sets the rates that a measurement finds; without a call, measuring is an error. Every rank is alone."""

    def refuse(*_: Any) -> cpu.Rates:
        raise AssertionError("measured")

    def rates(float32: float, bfloat16: float) -> None:
        monkeypatch.setattr(precision.cpu, "measure_rates", lambda width, hidden: cpu.Rates(float32, bfloat16))

    monkeypatch.setattr(precision.cpu, "measure_rates", refuse)
    monkeypatch.setattr(precision, "broadcast_object", lambda value: value)
    monkeypatch.setattr(precision, "agree", lambda work: work())
    return rates


@pytest.mark.parametrize(("float32", "bfloat16", "taken"), [(155e9, 83e9, "float32"), (155e9, 700e9, "bfloat16")])
def test_a_fresh_start_on_a_cpu_takes_the_faster_type(
    float32: float,
    bfloat16: float,
    taken: str,
    measured: Callable[[float, float], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured(float32, bfloat16)
    caplog.set_level("DEBUG")
    cfg, ds_config = precision.resolve(auto(tmp_path), DS_CONFIG, 0, CPU)
    assert cfg == replace(auto(tmp_path), model=replace(cfg.model, precision=taken))
    assert ds_config == DS_CONFIG | (
        {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}} if taken == "bfloat16" else {}
    )
    rates = f"float32 155 GFLOP/s, bfloat16 {bfloat16 / 1e9:.0f} GFLOP/s on this CPU"
    assert caplog.messages == [f"model.precision auto: {taken} ({rates})"]


def test_a_gpu_takes_bfloat16_without_a_measurement(measured: object, tmp_path: Path) -> None:
    cfg, ds_config = precision.resolve(auto(tmp_path), DS_CONFIG, 0, torch.device("cuda"))
    assert cfg.model.precision == "bfloat16" and ds_config["bf16"] == {"enabled": True}


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_a_run_that_continues_keeps_its_type(kept: config.Precision, measured: object, tmp_path: Path) -> None:
    begun = config.resolve_auto(auto(tmp_path / "a"), kept)
    run_dir.write_facts(begun, DS_CONFIG, {})
    assert precision.resolve(auto(tmp_path / "a"), DS_CONFIG, 0, CPU)[0] == begun
    assert run_dir.look(begun) == []  # the directory is that run's

    checkpoint = tmp_path / "step_00000003"
    checkpoint.mkdir()
    (checkpoint / "shard").touch()
    files = [{"file": "shard", "bytes": 0, "sha256": ""}]
    manifest = {"format": 1, "step": 3, "adam_step": 3, "files": files, "config": config.to_text(begun)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    for where in ({"branch_from": str(checkpoint)}, {"resume": str(checkpoint)}):
        cfg, _ = precision.resolve(auto(tmp_path / "b", **where), DS_CONFIG, 0, CPU)
        assert cfg.model.precision == kept


def test_a_hand_written_file_in_the_run_directory_may_say_auto(measured: Callable, tmp_path: Path) -> None:
    measured(2.0, 1.0)
    (tmp_path / "config.yaml").write_text(config.to_text(auto(tmp_path)))
    cfg, _ = precision.resolve(auto(tmp_path), DS_CONFIG, 0, CPU)
    assert cfg.model.precision == "float32" and run_dir.look(cfg) == []


@pytest.mark.parametrize(("bfloat16", "warned"), [(70e9, True), (90e9, False)])
def test_slow_bfloat16_on_a_cpu_is_warned_of(
    bfloat16: float,
    warned: bool,
    measured: Callable[[float, float], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    measured(155e9, bfloat16)
    explicit = config.resolve_auto(auto(tmp_path), "bfloat16")
    assert precision.resolve(explicit, DS_CONFIG, 0, CPU) == (explicit, DS_CONFIG)
    text = "model.precision bfloat16 is slow on this CPU (float32 155 GFLOP/s, bfloat16 70 GFLOP/s on this CPU)"
    assert [message.startswith(text) for message in caplog.messages] == [True] * warned


def test_explicit_float32_is_not_measured(measured: object, tmp_path: Path) -> None:
    explicit = config.resolve_auto(auto(tmp_path), "float32")
    assert precision.resolve(explicit, DS_CONFIG, 0, CPU) == (explicit, DS_CONFIG)
