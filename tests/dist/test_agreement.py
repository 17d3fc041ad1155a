"""Small exchanges between two ranks, and errors that both raise together."""

import socket
from collections.abc import Callable

import pytest

from tests.dist.pool import Pool

HOST = socket.gethostname()
pytestmark = pytest.mark.dist


def test_exchanges_and_errors_reach_every_rank(ranks: Callable[[int], Pool]) -> None:
    zero, one = ranks(2).run("exchanges", module="tests.dist.jobs_agreement")
    assert (zero.pop("result"), one.pop("result")) == ("of rank 0", "of rank 1")
    assert (zero.pop("on first"), one.pop("on first")) == ([0, 1], None)
    assert (
        zero
        == one
        == {
            "on rank 1": ("CheckpointError", f"broken\n(only rank 1 on host {HOST})"),
            "on both": ("UserError", "from rank 0"),
            "of a file": ("UserError", "no such file"),
            "of the storage": ("StorageError", f"no answer\n(only rank 1 on host {HOST})"),
            "also": ("UserError", f"memory\n(only rank 1 on host {HOST})"),
            "none": ("", ""),
            "maxima": [1, 5],
            "first": {"rank": 0},
            "on all": [0, 1],
            "max": 2.5,
        }
    )
