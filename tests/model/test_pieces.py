"""The predictor in pieces: loss, prediction and gradients of the whole, and less held at once."""

from dataclasses import replace

import pytest
import torch

from ijepa_ds.config import Config, PredictorConfig
from ijepa_ds.masks.sampler import Masks, build_sampler
from ijepa_ds.model import pieces
from ijepa_ds.model.ijepa import IJEPA, build
from ijepa_ds.model.vit import initialise
from tests.dist import measured


def network(checkpointing: bool = False) -> tuple[Config, IJEPA]:
    cfg = measured.config_of("tiny", micro_batch=3, ranks=1, depth=1, activation_checkpointing=checkpointing)
    cfg = replace(cfg, model=replace(cfg.model, predictor=PredictorConfig(depth=3, width=96, heads=3)))
    model = build(cfg)
    for part in (model.encoder, model.predictor, model.target_encoder):
        initialise(part, 0)
    return cfg, model


def batch(cfg: Config, contexts: int = 1) -> tuple[torch.Tensor, Masks]:
    masks = build_sampler(cfg.masks, cfg.grid, 0, 3).sample(0, 0, 3, "cpu")
    context = masks.context.expand(-1, contexts, -1) if contexts == 1 else torch.cat([masks.context] * contexts, dim=1)
    return torch.randn(3, 3, 224, 224, generator=torch.Generator().manual_seed(1)), Masks(context, masks.targets)


# scale: of a micro-batch among four
@pytest.mark.parametrize(
    ("contexts", "tokens", "checkpointing", "scale"),
    [(1, 512, False, 1.0), (2, 512, False, 0.25), (1, 120, False, 1.0), (1, 120, True, 0.25)],
)
def test_the_sums_are_the_same(
    contexts: int, tokens: int, checkpointing: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "most_tokens", lambda predictor: tokens)
    cfg, model = network(checkpointing)
    results = []
    for model.predict_in_pieces in (False, True):
        model.zero_grad()
        for _ in range(2):  # the second adds to the first
            output = model(*batch(cfg, contexts))
            (output.loss * scale).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        results.append({"loss": output.loss.detach(), "prediction": output.prediction} | gradients)
        assert not output.prediction.requires_grad
    for name, whole in results[0].items():
        torch.testing.assert_close(results[1][name], whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()), msg=name)


@pytest.mark.parametrize(
    ("images", "contexts", "most", "count", "shape"),
    [
        (8, 1, 4 * 8 * 90, 1, (8, 4)),  # all of them fit
        (8, 1, 1500, 2, (8, 2)),
        (8, 1, 800, 4, (8, 1)),
        (8, 1, 400, 8, (4, 1)),
        (3, 2, 200, 12, (1, 1)),
        (1, 1, 50, 4, (1, 1)),  # an image is not cut
    ],
)
def test_pieces_are_of_one_size_and_cover_all_once(
    images: int, contexts: int, most: int, count: int, shape: tuple[int, int]
) -> None:
    context, targets = torch.zeros(images, contexts, 60), torch.zeros(images, 4, 30)
    found = pieces.split(context, targets, most)
    seen = torch.zeros(images, 4)
    for one, blocks in found:
        seen[one, blocks] += 1
    assert len(found) == count and bool((seen == 1).all())
    assert seen[found[0][0], found[0][1]].shape == shape


def test_small_predictors_are_not_cut() -> None:
    _, model = network()
    assert pieces.most_tokens(model.predictor) > 4 * 3 * 200


def test_it_holds_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "most_tokens", lambda predictor: 512)
    cfg, model = network()
    held = []
    for model.predict_in_pieces in (False, True):
        images, masks = batch(cfg)
        model(images, masks).loss.backward()  # gradients exist from now on
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model(images, masks).loss.backward()
        held.append(measured.peak_bytes(profile))
    assert held[1] < 0.6 * held[0]


def test_without_gradients_all_goes_at_once() -> None:
    cfg, model = network()
    model.predict_in_pieces = True
    with torch.no_grad():
        output = model(*batch(cfg))
    assert not output.loss.requires_grad
