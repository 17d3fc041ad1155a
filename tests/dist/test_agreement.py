"""Small exchanges between two ranks, and errors that both raise together."""

from collections.abc import Callable

import pytest

from tests.dist.pool import Pool

pytestmark = pytest.mark.dist


def test_exchanges_and_errors_reach_every_rank(ranks: Callable[[int], Pool]) -> None:
    zero, one = ranks(2).run("exchanges", module="tests.dist.jobs_agreement")
    assert (zero.pop("result"), one.pop("result")) == ("of rank 0", "of rank 1")
    assert (zero.pop("on first"), one.pop("on first")) == ([0, 1], None)
    assert (
        zero
        == one
        == {
            "on rank 1": ("CheckpointError", "broken\n(on rank 1 only)"),
            "on both": ("UserError", "from rank 0"),
            "of a file": ("UserError", "[Errno 2] no such file"),
            "of the storage": ("StorageError", "[Errno 5] no answer\n(on rank 1 only)"),
            "also": ("UserError", "memory\n(on rank 1 only)"),
            "none": ("", ""),
            "maxima": [1, 5],
            "first": {"rank": 0},
            "on all": [0, 1],
            "max": 2.5,
        }
    )
