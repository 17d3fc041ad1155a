"""The rates of linear layers: what is counted, how long it takes, what it leaves alone."""

import itertools
import time

import pytest
import torch

from ijepa_ds.model.cpu import Rates, measure_rates


def test_a_rate_is_that_of_three_products() -> None:
    seconds = itertools.count()  # every call of the clock is a second later
    rates = measure_rates(64, 256, clock=lambda: float(next(seconds)))
    assert rates == Rates(6.0 * 16 * 64 * 256, 6.0 * 16 * 64 * 256)
    assert rates.faster == "float32"
    assert Rates(1e9, 2e9).faster == "bfloat16"
    assert str(Rates(155.4e9, 83e9)) == "float32 155 GFLOP/s, bfloat16 83 GFLOP/s on this CPU"


@pytest.mark.parametrize(("width", "hidden"), [(128, 512), (1280, 5120)])
def test_measuring_is_quick_and_draws_no_global_random_number(width: int, hidden: int) -> None:
    state, began = torch.get_rng_state(), time.process_time()
    rates = measure_rates(width, hidden)
    assert time.process_time() - began < 5
    assert min(rates) > 1e7
    assert torch.equal(torch.get_rng_state(), state)
