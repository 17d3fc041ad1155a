"""The configurations beyond ViT-H: they are accepted on the hardware they name, and have the size they name."""

import re
from pathlib import Path

import pytest
import torch

from ijepa_ds.config import check, load
from ijepa_ds.config.deepspeed_json import load_deepspeed
from ijepa_ds.model.ijepa import build

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "nodes", "billions"),
    [("scale_vitG14_2nodes", 2, 1.84), ("scale_vit7b16_8nodes", 8, 8.06), ("scale_vit22b14_64nodes", 64, 21.74)],
)
def test_scaling_configurations(name: str, nodes: int, billions: float) -> None:
    path = REPOSITORY / "configs" / f"{name}.yaml"
    cfg, (spread,) = load(path), set(re.findall(r"ds_configs/\S+\.json", path.read_text()))
    plan = check(cfg, 8 * nodes)
    assert plan.accumulation * plan.micro_batch * 8 * nodes == cfg.optimization.batch_size
    assert load_deepspeed(REPOSITORY / spread, cfg, plan)["zero_optimization"]["stage"] == 3
    with torch.device("meta"):
        model = build(cfg)
    assert sum(p.numel() for p in model.encoder.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    share = sum(p.numel() for p in model.predictor.parameters()) / sum(p.numel() for p in model.encoder.parameters())
    assert 0.01 < share < 0.05
