"""Runs with options beyond the published models: read back whole, and not exported as what they are not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ijepa_ds.config import load
from ijepa_ds.weights import load_encoder
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.formats import check_exportable
from ijepa_ds.weights.open import open_source
from tests.weights_cases import small_config, write_run

OPTIONS = {"qk_norm": True, "swiglu": True, "rope": True, "registers": 2, "layer_scale": 0.1, "drop_path": 0.2}


def test_a_run_with_options(tmp_path: Path) -> None:
    cfg = small_config(tmp_path)
    cfg = replace(cfg, model=replace(cfg.model, **OPTIONS))
    model = write_run(tmp_path / "run", cfg)
    encoder, _ = load_encoder(tmp_path / "run")
    images = torch.randn(2, 3, cfg.data.crop_size, cfg.data.crop_size)
    torch.testing.assert_close(encoder(images), model.target_encoder.eval()(images))
    source = open_source(tmp_path / "run", None, None)
    for format_ in ("timm", "hf"):
        with pytest.raises(WeightsError, match="qk_norm, swiglu, rope, registers, layer_scale, which .* --format safetensors"):
            check_exportable(source, format_, "target")
    check_exportable(source, "safetensors", "target")
    assert load(tmp_path / "run" / "config.yaml").model == cfg.model
