"""A step asks the device for no value, except in the optimizer. On a GPU: tests/dist/test_gpu.py."""

from collections.abc import Callable

import pytest
import torch

from tests.dist.pool import Pool
from tests.dist.waits import waits

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_only_the_optimizer_asks_the_device(stage: int, ranks: Callable[[int], Pool]) -> None:
    precision = "float32" if stage == 0 else "bfloat16"  # at stage 0 in bfloat16 DeepSpeed asks for each parameter
    (found,) = ranks(1).run("waits_of_a_step", stage=stage, precision=precision)
    of_optimizer = found.pop("optimizer")
    assert not any(found.values()), found
    assert len(of_optimizer) == 1, of_optimizer  # are the gradients finite?


def test_what_would_wait_is_found() -> None:
    x = torch.arange(4.0)
    for ask in (lambda: x[0].item(), lambda: float(x.sum()), lambda: bool(x.any()), lambda: x[x > 1], lambda: x.nonzero()):
        with waits(x.device) as found:
            ask()
        assert found and "test_waits.py" in found[0], found
    with waits(x.device) as found:
        x.mul_(2).add_(x).where(x > 1, x)[torch.tensor([1, 2])].sum()
    assert found == []
