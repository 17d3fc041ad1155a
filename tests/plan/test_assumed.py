"""`ijepa-ds plan` says what its figures rest on, what caps the micro-batch, and refuses keys that it would ignore."""

import json
from pathlib import Path

import pytest

from ijepa_ds import cli, config
from ijepa_ds.config.batch import capped_by
from ijepa_ds.plan.command import _NOT_MODELLED

CONFIG = "configs/in1k_vith14.yaml"


@pytest.mark.parametrize(
    ("overrides", "world", "words"),
    [
        ([], 8, "optimization.max_micro_batch 128"),
        (["optimization.max_micro_batch=100"], 8, "optimization.max_micro_batch 100 (the largest divisor of a device's 256"),
        (["optimization.batch_size=512"], 8, "optimization.batch_size: a device's whole share of 512"),
        (["masks.truncation_group=32"], 8, "masks.truncation_group 32, whose borders"),
    ],
)
def test_what_caps_the_micro_batch(overrides: list[str], world: int, words: str, repository: Path) -> None:
    cfg = config.load(repository / CONFIG, ["data.source=x", *overrides])
    assert capped_by(cfg, world).startswith(words)


def test_what_is_assumed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--config", str(repository / CONFIG), "--deepspeed_config", str(repository / "ds_configs" / "zero3.json")]
    given += ["--gpus-per-node", "8", "--decode-rate", "250", "--gpu", "a100-80g", "data.source=x"]
    assert cli.main(given) == 0
    text = capsys.readouterr().out
    for words in (
        "kept from being larger by optimization.",
        "a100-80g (data sheet; --gpu): 79.2 GiB",
        "each prepares 250 images/s",
    ):
        assert words in text
    assert "25 GB/s and 9.6 us a device to other machines" in text and "--write-gbps" in text
    assert cli.main([*given, "--json", "-"]) == 0
    assert set(json.loads(capsys.readouterr().out)["assumed"]) == {"device", "links", "network", "cores", "storage"}


@pytest.mark.parametrize("key", _NOT_MODELLED)
def test_keys_without_a_formula_are_refused(
    key: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = json.loads((repository / "ds_configs" / "zero3.json").read_text())
    section, _, name = key.rpartition(".")
    values = {"communication_data_type": "fp16", "leaf_module": {}, "stage3_model_persistence_threshold": 7}
    values |= {"allgather_partitions": False, "memory_efficient_linear": False, "stage3_module_granularity_threshold": 7}
    (written[section] if section else written)[name] = values.get(name, True)
    (tmp_path / "own.json").write_text(json.dumps(written))
    given = ["plan", "--config", str(repository / CONFIG), "--deepspeed_config", str(tmp_path / "own.json"), "data.source=x"]
    assert cli.main(given) == 2
    assert f"own.json: {key}: the plan has no formula for it" in capsys.readouterr().err
