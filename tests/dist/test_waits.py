"""A step asks the device for no value, except in the optimizer. On a GPU: tests/dist/test_gpu.py."""

from collections.abc import Callable

import pytest
import torch

from tests.dist.pool import Pool
from tests.dist.waits import waits

pytestmark = pytest.mark.dist


# The optimizer has to know whether the gradients are finite, and DeepSpeed asks more than once.
@pytest.mark.parametrize(("stage", "most"), [(0, 1), (1, 9), (2, 9), (3, 9)])
def test_only_the_optimizer_asks_the_device(stage: int, most: int, ranks: Callable[[int], Pool]) -> None:
    precision = "float32" if stage == 0 else "bfloat16"  # at stage 0 in bfloat16 DeepSpeed asks for each parameter
    (found,) = ranks(1).run("waits_of_a_step", stage=stage, precision=precision)
    of_optimizer = found.pop("optimizer")
    assert not any(found.values()), found
    assert 1 <= len(of_optimizer) <= most, of_optimizer


def test_what_would_wait_is_found() -> None:
    x = torch.arange(4.0)
    for ask in (lambda: x[0].item(), lambda: float(x.sum()), lambda: bool(x.any()), lambda: x[x > 1], lambda: x.nonzero()):
        with waits(x.device) as found:
            ask()
        assert found and "test_waits.py" in found[0], found
    with waits(x.device) as found:
        x.mul_(2).add_(x).where(x > 1, x)[torch.tensor([1, 2])].sum()
    assert found == []
