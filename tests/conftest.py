"""What every test may ask for, and what holds for all of them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # tests share two cores with each other's processes

REPOSITORY = Path(__file__).parents[1]
POOL = {  # files whose tests use the fixture `ranks` of tests/dist/conftest.py
    f"tests/dist/test_{name}.py"
    for name in (
        "agreement",
        "bench",
        "damage",
        "decoder_ranks",
        "elastic",
        "ema",
        "evals_ranks",
        "linear",
        "plan",
        "start",
        "state",
        "traffic",
        "zero",
    )
}


@pytest.fixture(autouse=True)
def _messages_are_seen() -> Iterator[None]:
    """A run inside this process sends its messages to a log; those of the next test go to the standard streams again."""
    from ijepa_ds.terminal.screen import screen

    yield
    screen.__init__()  # type: ignore[misc]


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


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder for runs: 24 small images, `run.yaml`, `zero0.json` ... `zero3.json`. What works there is ended at the end."""
    from tests.dist.launched import prepare
    from tests.processes import kill_all_of

    yield prepare(tmp_path)
    kill_all_of(tmp_path)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with a checkpoint whose EMA encoder is blind: it gives all images the same vector."""
    from tests.evals_cases import write_blind_run

    return write_blind_run(tmp_path)


@pytest.fixture(params=["two-contexts", "small"])
def oracle(request: pytest.FixtureRequest) -> Any:
    """Figures and tensors of one recorded run; `two-contexts` is in tests/recorded, `small` in shared/."""
    from tests.oracle import DATA, read_oracle

    if request.param == "two-contexts":
        return read_oracle(DATA / "oracle-two-contexts.json", DATA / "oracle-two-contexts.safetensors")
    folder = request.getfixturevalue("shared") / "oracle" / "small"
    return read_oracle(folder / "figures.json", folder / "tensors.safetensors")


@pytest.fixture(scope="session")
def _empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("current-directory")


@pytest.fixture(autouse=True)
def _current_directory(_empty_folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """No test reads or writes the current directory: it is an empty folder, and stays one. Its feature cache is its own."""
    monkeypatch.chdir(_empty_folder)
    monkeypatch.setenv("IJEPA_DS_CACHE", f"{_empty_folder}-features/{zlib.crc32(request.node.nodeid.encode()):08x}")
    yield
    left = list(_empty_folder.iterdir())
    for path in left:  # it is the fault of this test, not of the next one
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not left, f"written to the current directory: {left}"


def pytest_configure() -> None:
    """Let SIGTERM end pytest as Ctrl-C does, so that fixtures end the processes they started."""
    me = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == me:
            pytest.exit("ended by SIGTERM", returncode=128 + number)
        os._exit(128 + number)  # a fork of pytest, which has no fixtures

    signal.signal(signal.SIGTERM, end)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Seed every global random number generator, before the fixtures of the test are made."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` or `nightly` where they cannot or need not run; order the tests for pytest-xdist's workers."""
    gpu, nightly = torch.cuda.is_available(), os.environ.get("IJEPA_DS_NIGHTLY") == "1"
    for item in items:
        if item.get_closest_marker("nightly") and not nightly:
            item.add_marker(pytest.mark.skip(reason="NIGHTLY: runs where IJEPA_DS_NIGHTLY=1"))
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
