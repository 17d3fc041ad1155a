"""What every test may ask for, and what holds for all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # tests share two cores with each other's processes

REPOSITORY = Path(__file__).parents[1]


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


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where there is no GPU; group and order the tests for the workers of pytest-xdist."""
    gpu = torch.cuda.is_available()
    for item in items:
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="NO CUDA GPU: this test needs one"))
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    if "PYTEST_XDIST_WORKER" in os.environ:  # the long ones first, so that no worker waits for another at the end
        marks = ("dist", "slow")
        items.sort(key=lambda item: [group_of(item) != "pool", *(not item.get_closest_marker(mark) for mark in marks)])


def group_of(item: pytest.Item) -> str:
    """Tests of one group run in one worker: those of a file share its fixtures, all on the pool of ranks share the pool."""
    if "ranks" in getattr(item, "fixturenames", ()):
        return "pool"
    return str(item.path.relative_to(REPOSITORY / "tests").with_suffix(""))
