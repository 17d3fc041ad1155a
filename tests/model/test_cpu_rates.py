"""The rates of linear layers: what is counted, how long it takes, what it leaves alone."""

import itertools
import time
from collections.abc import Iterator

import pytest
import torch

from ijepa_ds.model.cpu import Rates, measure_rates
from ijepa_ds.model.cpu.rates import _rate


def test_a_rate_is_that_of_three_products() -> None:
    seconds = itertools.count()  # every call of the clock is a second later
    rates = measure_rates(64, 256, clock=lambda: float(next(seconds)))
    assert rates == Rates(6.0 * 16 * 64 * 256, 6.0 * 16 * 64 * 256)
    assert rates.faster == "float32"
    assert Rates(1e9, 2e9).faster == "bfloat16"
    assert str(Rates(155.4e9, 83e9)) == "float32 155 GFLOP/s, bfloat16 83 GFLOP/s on this CPU"


def test_passes_that_create_kernels_or_were_interrupted_do_not_decide() -> None:
    """A pass takes 1 ms; the first of each type and every third one later take 0.4 s."""

    def times() -> Iterator[float]:
        now = 0.0
        for number in itertools.count():
            yield now
            now += 0.4 if number == 0 or number % 3 == 1 else 0.001
            yield now

    ticks = [times(), times()]
    rates = [_rate(64, 256, dtype, ticks.pop().__next__) for dtype in (torch.float32, torch.bfloat16)]
    largest = 3 * 2.5e8  # FLOPs of the largest pass: 7,629 rows
    assert rates == pytest.approx([largest / 0.001] * 2, rel=1e-3)


@pytest.mark.parametrize(("width", "hidden"), [(128, 512), (1280, 5120)])
def test_measuring_is_quick_and_draws_no_global_random_number(width: int, hidden: int) -> None:
    state, began = torch.get_rng_state(), time.process_time()
    rates = measure_rates(width, hidden)
    assert time.process_time() - began < 5
    assert min(rates) > 1e7
    assert torch.equal(torch.get_rng_state(), state)
