"""The probes say what their names say."""

import numpy as np
import pytest
import torch

from ijepa_ds.telemetry.metrics import Clock, effective_rank, feature_std


def features(seed: int = 0) -> torch.Tensor:
    """[7, 100, 12]: directions of different spread, and a mean that is large against all of them, as in a trained encoder."""
    rng = np.random.default_rng(seed)
    spread = rng.standard_normal((7, 100, 12)) * np.linspace(0.1, 3.0, 12) @ np.linalg.qr(rng.standard_normal((12, 12)))[0]
    return torch.from_numpy(spread + 50.0 * rng.standard_normal(12)).float()


@pytest.mark.parametrize("limit", [4096, 200])
def test_effective_rank_is_numpys_of_centred_features(limit: int) -> None:
    x = features()
    tokens = x.double().numpy().reshape(700, 12)
    if limit == 200:
        tokens = tokens[::3][:200]  # evenly spaced
    singular = np.linalg.svd(tokens - tokens.mean(axis=0), compute_uv=False)
    share = singular / singular.sum()
    wanted = np.exp(-(share * np.log(share)).sum())
    # float32: 1e-7 relative; without centring 1.7 instead of 9.8; the first 200 tokens: 3e-3; every third token: 5e-4
    assert 9 < wanted < 11
    assert float(effective_rank(x, limit)) == pytest.approx(wanted, rel=1e-4)


def test_effective_rank_counts_dimensions_in_use() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(4000, 32, generator=generator)
    assert float(effective_rank(full)) == pytest.approx(32, rel=0.002)  # sampling noise lowers it by 0.1 %
    flat = full[:, :4] @ torch.randn(4, 32, generator=generator)
    assert float(effective_rank(flat)) <= 4.0
    # a mean is no fifth dimension; rounding of 100 in float32 changes 0.002, without centring the rank falls to 1.2
    assert float(effective_rank(flat + 100.0)) == pytest.approx(float(effective_rank(flat)), abs=0.02)
    assert float(effective_rank(torch.ones(100, 32))) == 1.0
    for scale in (1e-30, 1e18, 1e37):  # predictions of a run that diverges are finite for a while
        assert float(effective_rank(flat * scale)) == pytest.approx(float(effective_rank(flat)), rel=1e-3)


def test_feature_std_is_numpys_and_sees_collapse() -> None:
    x = features()
    wanted = x.double().numpy().reshape(700, 12).std(axis=0, ddof=1).mean()
    # float32: 1e-8 relative; n instead of n - 1: 7e-4; over features instead of tokens, or around 0: 30 times as much
    assert float(feature_std(x)) == pytest.approx(wanted, rel=1e-5)
    assert float(feature_std(torch.ones(10, 100, 16))) == 0.0


def test_clock_books_time_under_names(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 10.5, 10.5, 12.0, 12.0, 13.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock(torch.device("cpu"))
    clock.mark("sleep")
    clock.mark("nothing")
    clock.mark("sleep")
    assert clock.seconds() == {"sleep": 2.0, "nothing": 0.0}
    assert clock.seconds() == {}
