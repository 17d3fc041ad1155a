"""The probes say what their names say."""

import time

import pytest
import torch

from ijepa_ds.telemetry.metrics import Clock, effective_rank, feature_std


def test_effective_rank_counts_dimensions_in_use() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(4000, 32, generator=generator)
    assert float(effective_rank(full)) == pytest.approx(32, rel=0.02)
    flat = full[:, :4] @ torch.randn(4, 32, generator=generator)
    assert float(effective_rank(flat)) < 4.1
    assert float(effective_rank(torch.ones(100, 32))) == pytest.approx(1.0, abs=0.1)


def test_feature_std_sees_collapse() -> None:
    x = torch.randn(10, 100, 16)
    assert float(feature_std(x)) == pytest.approx(1.0, rel=0.1)
    assert float(feature_std(torch.ones(10, 100, 16))) == 0.0


def test_clock_books_time_under_names() -> None:
    clock = Clock(torch.device("cpu"))
    time.sleep(0.05)
    clock.mark("sleep")
    clock.mark("nothing")
    seconds = clock.seconds()
    assert seconds["sleep"] >= 0.05 > seconds["nothing"]
    assert clock.seconds() == {}
