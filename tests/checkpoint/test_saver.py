"""The states of a save, on one rank with a model of one weight; several ranks: tests/dist."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from ijepa_ds.checkpoint import writer
from ijepa_ds.checkpoint.folder import list_steps
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.checkpoint.saver import NotFiniteError, Saver
from ijepa_ds.distributed.exchange import host_group
from ijepa_ds.errors import CheckpointError
from tests.checkpoint_cases import Layout
from tests.waiting import wait_until


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield Layout()
    dist.destroy_process_group()
    host_group.cache_clear()


def make(layout: Layout, run: Path) -> Saver:
    ema = SimpleNamespace(layout=layout, pieces=layout.pieces, average=[layout.weights * 10])
    return Saver(layout, ema, run, every=10, keep_last=2)  # type: ignore[arg-type]


def idle(saver: Saver) -> None:
    """Until this rank's thread has ended."""
    wait_until(lambda: not saver.busy, 100, "the end of the saving thread", pause=0.01)


def test_a_save_is_written_then_committed_and_only_then_there(layout: Layout, tmp_path: Path) -> None:
    saver = make(layout, tmp_path)
    assert saver.due(10) and not saver.due(11) and not saver.unfinished
    saver.start(10, {"seen": 80}, bad=[("a.jpg", "broken", 3)])
    layout.weights += 100  # the next step must not reach the file
    saver.advance(11, anyone_busy=True)
    idle(saver)
    assert saver.unfinished and list_steps(tmp_path) == []
    saver.advance(12, anyone_busy=False)
    idle(saver)
    assert saver.unfinished and list_steps(tmp_path) == [10]  # not logged as safe before every rank has heard of it
    saver.advance(13, anyone_busy=False)
    assert not saver.unfinished and not saver.due(14)
    reader = CheckpointReader(tmp_path / "checkpoints" / "step_00000010")
    assert reader.read("master", "w").tolist() == [0, 1, 2, 3] and reader.read("ema", "encoder.w").tolist() == [0, 10, 20, 30]
    facts = reader.manifest
    assert (facts["seen"], facts["adam_step"], facts["bad_samples"]) == (80, 5, [["a.jpg", "broken", 3]])


@pytest.mark.parametrize("stage", ["write_shard", "commit"])
def test_a_failed_save_is_logged_cleaned_up_and_tried_again(
    stage: str, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = make(layout, tmp_path)
    with monkeypatch.context() as broken:

        def refuse(*_: object) -> None:
            raise CheckpointError("disk full")

        broken.setattr(writer, stage, refuse)
        saver.start(10, {})
        assert not saver.finish()
    assert "checkpoint of step 10 NOT SAVED" in caplog.text and "disk full" in caplog.text and "rank 0 on" in caplog.text
    assert not list(tmp_path.glob("checkpoints/.step_*")) and not saver.unfinished
    assert [saver.due(step) for step in (10, 11, 12)] == [True] * 3 and not make(layout, tmp_path).due(11)
    saver.start(11, {})
    assert not saver.due(12)
    assert saver.finish() and list_steps(tmp_path) == [11]


def test_a_state_that_is_not_finite_ends_the_run(layout: Layout, tmp_path: Path) -> None:
    saver = make(layout, tmp_path)
    layout.weights[2] = float("nan")
    saver.start(10, {})
    idle(saver)
    with pytest.raises(NotFiniteError, match=r"step 10 NOT SAVED.*not finite"):
        saver.advance(11, anyone_busy=False)
    assert list_steps(tmp_path) == []


def test_a_save_that_is_due_too_early_waits_for_the_one_before(
    layout: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saver, beats = make(layout, tmp_path), []
    saver.start(10, {})
    saver.start(20, {}, beat=lambda: beats.append(1))
    assert "checkpoint of step 10 is still being written, and that of step 20 is due" in caplog.text
    assert list_steps(tmp_path) == [10]
    assert saver.finish() and list_steps(tmp_path) == [10, 20]
    assert json.loads((tmp_path / "last_checkpoint.json").read_text()) == {"step": 20}


def test_a_writer_gives_signs_of_life_only_while_it_works(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow writer is no hang as long as it writes; one that waits for a disk for ever is."""
    real, works, ends = writer.write_shard, threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> dict[str, Any]:
        while works.is_set():
            (tmp_path / "progress").write_text("more")
        ends.wait()
        return real(*arguments)

    monkeypatch.setattr(writer, "write_shard", slowly)
    signs: list[float] = []

    def sign() -> None:
        signs.append(time.monotonic())
        if len(signs) == 4:
            works.clear()  # it gets stuck
            threading.Timer(3.5, ends.set).start()

    saver = make(layout, tmp_path)
    works.set()
    saver.start(10, {})
    assert saver.finish(sign) and list_steps(tmp_path) == [10]
    assert max(after - before for before, after in itertools.pairwise(signs)) > 2.2
