"""What every test may ask for, and what holds for all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # tests share two cores with each other's processes

REPOSITORY = Path(__file__).parents[1]
POOL = {  # files whose tests use the fixture `ranks` of tests/dist/conftest.py
    f"tests/dist/test_{name}.py"
    for name in (
        "agreement",
        "bench",
        "decoder_ranks",
        "elastic",
        "ema",
        "evals_ranks",
        "plan",
        "start",
        "state",
        "traffic",
        "zero",
    )
}


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """Optional real data and reference values beside the checkout; without them the test is skipped, and says so."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"OPTIONAL DATA IS MISSING: {folder} is not there, this test against real data did not run")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no GPU; order the tests for the workers of pytest-xdist."""
    gpu = torch.cuda.is_available()
    for item in items:
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="NO CUDA GPU: this test needs one"))
    if "PYTEST_XDIST_WORKER" in os.environ:  # the long ones first, so that no worker waits for another at the end
        marks = ("dist", "slow")
        items.sort(key=lambda item: [group_of(item.nodeid) != "pool", *(not item.get_closest_marker(m) for m in marks)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each worker whole groups. (`--dist loadgroup` of pytest-xdist 3.8 has no effect under pytest 9.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def group_of(nodeid: str) -> str:
    """What one worker runs in sequence: a file, whose tests share fixtures, or all files that use the pool of ranks.

    Two pools at once would slow each other: DeepSpeed's collectives on CPUs wait by spinning.
    """
    file = nodeid.partition("::")[0]
    return "pool" if file in POOL else file
