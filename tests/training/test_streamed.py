"""Features block by block are those of the whole encoder, at most one block is held, and errors leave no gather behind."""

import numpy as np
import pytest
import torch

from ijepa_ds.config import Config, DataConfig, ModelConfig, OptimizationConfig, PredictorConfig, RunConfig
from ijepa_ds.config.sizes import size_of
from ijepa_ds.evals.features import extract
from ijepa_ds.model.vit import Encoder, initialise
from ijepa_ds.training.streamed import StreamedEncoder

CFG = DataConfig(source=".", crop_size=32)


def config(**model) -> Config:
    return Config(
        run=RunConfig(dir="."),
        data=CFG,
        model=ModelConfig(
            name="tiny",
            patch_size=8,
            width=48,
            depth=3,
            heads=3,
            predictor=PredictorConfig(width=24, depth=1, heads=2),
            **model,
        ),
        optimization=OptimizationConfig(batch_size=2),
    )


@pytest.mark.parametrize("model", [{}, {"rope": True}, {"registers": 2}, {"drop_path": 0.3}, {"layer_scale": 0.1}], ids=str)
def test_features_are_those_of_the_whole_encoder(model):
    cfg = config(**model)
    encoder = Encoder(size_of(cfg.model), 8, cfg.grid).requires_grad_(False)
    initialise(encoder, 3, layer_scale=0.1)
    for parameter in encoder.parameters():
        parameter += 0.02 * torch.randn(parameter.shape)
    images = [np.random.default_rng(i).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8) for i in range(2)]
    streamed, beats = StreamedEncoder(cfg, torch.device("cpu"), torch.float32), []
    weights = ((name, parameter.flatten()) for name, parameter in encoder.named_parameters())
    ours = streamed.features(weights, images, lambda: beats.append(1))
    torch.testing.assert_close(ours, extract(encoder, images, CFG.mean, CFG.std, "cpu"), rtol=1e-4, atol=1e-5)
    assert len(beats) == 3
    whole = sum(parameter.numel() for parameter in encoder.parameters())
    held = sum(parameter.numel() for part in (streamed._around, streamed._block) for parameter in part.parameters())
    assert held < 0.5 * whole


def test_weights_out_of_order_are_an_error():
    cfg = config()
    encoder = Encoder(size_of(cfg.model), 8, cfg.grid)
    named = list(encoder.named_parameters())
    streamed = StreamedEncoder(cfg, torch.device("cpu"), torch.float32)
    for order in (named[::-1], [pair for pair in named if not pair[0].startswith("blocks.2")]):
        weights = ((name, parameter.detach().flatten()) for name, parameter in order)
        with pytest.raises(RuntimeError, match="this layout is not supported"):
            streamed.features(weights, [], lambda: None)
