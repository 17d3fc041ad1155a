"""Small crops first, and the target pass in bfloat16: what they change, and what they leave alone."""

from dataclasses import replace

import pytest
import torch

from ijepa_ds.config import Config, MasksConfig, at_step
from ijepa_ds.masks.sampler import Masks
from ijepa_ds.model import ijepa
from ijepa_ds.model.vit import initialise, sincos_position_embedding
from ijepa_ds.training.resolution import Resolutions, shrunk
from tests.dist import jobs


def config_of(**data: object) -> Config:
    """6 x 6 patches of 8 pixels."""
    cfg = jobs.tiny_config()
    return replace(cfg, data=replace(cfg.data, **data), masks=MasksConfig(sampler="unbiased", min_keep=1, context_tokens=9))


def model_of(cfg: Config) -> ijepa.IJEPA:
    model = ijepa.build(cfg)
    initialise(model, 0)
    model.target_encoder.load_state_dict(model.encoder.state_dict())
    return model


def batch(cfg: Config, step: int) -> tuple[torch.Tensor, Masks]:
    sampler = Resolutions(cfg).sampler(step)
    size = sampler.grid * cfg.model.patch_size
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(step)), sampler.sample(step, 0, 4, "cpu")


def test_the_first_steps_have_smaller_images_and_masks_of_their_grid() -> None:
    cfg = config_of(early_crop_size=32, early_steps=5)
    both, without = Resolutions(cfg), Resolutions(config_of())
    pixels = torch.randint(0, 256, (4, 48, 48, 3), dtype=torch.uint8)
    early, late = both.sampler(4), both.sampler(5)
    assert (early.grid, late.grid) == (4, 6) and both.shrink(pixels, 4).shape == (4, 32, 32, 3)
    assert both.shrink(pixels, 5) is pixels
    masks = early.sample(4, 0, 4, "cpu")
    assert masks.context.shape == (4, 1, 4) and masks.context.max() < 16 and masks.targets.max() < 16  # 9 of 36: 4 of 16
    for step in (5, 6):
        assert torch.equal(late.sample(step, 0, 4, "cpu").context, without.sampler(step).sample(step, 0, 4, "cpu").context)
    assert at_step(cfg, 5) == cfg and without.shrink(pixels, 0) is pixels


def test_shrinking_averages_and_keeps_bytes() -> None:
    pixels = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    pixels[:, :2] = 200
    small = shrunk(pixels, 2)
    assert small.dtype == torch.uint8 and small.is_contiguous()
    assert small[0, 0].min() > 150 and small[0, 1].max() < 50


def test_parameters_are_the_same_and_positions_lie_between_the_learnt_ones() -> None:
    cfg = config_of(early_crop_size=32, early_steps=5)
    model, plain = model_of(cfg), model_of(config_of())
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in plain.named_parameters()]
    full = model.encoder.pos_embed.clone()
    model.set_grid(4)
    for table, width in ((model.encoder.pos_embed, 48), (model.predictor.predictor_pos_embed, 24)):
        assert torch.equal(table, sincos_position_embedding(width, 4, 6))
    loss = model(*batch(cfg, 0)).loss
    loss.backward()
    assert torch.isfinite(loss) and model.encoder.patch_embed.proj.weight.grad.abs().sum() > 0
    model.set_grid(6)
    assert torch.equal(model.encoder.pos_embed, full)
    images, masks = batch(cfg, 5)
    assert torch.equal(model(images, masks).loss, plain(images, masks).loss)


@pytest.mark.parametrize("options", [{}, {"rope": True, "qk_norm": True, "swiglu": True, "registers": 2}])
def test_the_target_pass_alone_is_in_bfloat16(options: dict) -> None:
    cfg = config_of()
    cfg = replace(cfg, model=replace(cfg.model, **options))
    exact, narrow = model_of(cfg), model_of(replace(cfg, model=replace(cfg.model, target_precision="bfloat16")))
    images, masks = batch(cfg, 0)
    (_, prediction, target, _), (loss, prediction16, target16, _) = exact(images, masks), narrow(images, masks)
    assert torch.equal(prediction, prediction16)
    assert target16.dtype == torch.float32 and not torch.equal(target, target16)
    torch.testing.assert_close(target16, target, rtol=0.1, atol=0.1)
    loss.backward()
    assert all(p.dtype == torch.float32 for p in narrow.parameters())
    assert all(p.grad is None for p in narrow.target_encoder.parameters())
    bfloat16 = replace(cfg.model, precision="bfloat16", target_precision="bfloat16")
    assert not ijepa.build(replace(cfg, model=bfloat16)).target_bfloat16  # there, nothing is left to change


def test_contexts_share_one_target_pass() -> None:
    cfg = config_of()
    cfg = replace(cfg, masks=replace(cfg.masks, num_contexts=3))
    model, calls = model_of(cfg), []
    model.target_encoder.register_forward_hook(lambda *_: calls.append(1))
    images, masks = batch(cfg, 0)
    output = model(images, masks)
    assert output.prediction.shape[:3] == (4, 3, 4) and calls == [1]
    alone = [model(images, Masks(masks.context[:, [c]], masks.targets)).loss for c in range(3)]
    torch.testing.assert_close(output.loss, torch.stack(alone).mean())
