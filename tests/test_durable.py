"""What is written can be read by those whom the umask allows."""

import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ijepa_ds.durable import append_lines, save_tensors


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_file_of_tensors_has_the_permissions_of_any_new_file(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors({"a": torch.arange(3)}, path, {"b": "c"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    with safe_open(path, framework="pt") as file:
        assert file.get_tensor("a").tolist() == [0, 1, 2]
        assert file.metadata() == {"b": "c"}


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "nowhere" / "x.safetensors")


def test_a_log_that_cannot_be_written_is_said_and_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    append_lines(tmp_path / "log.jsonl", ["a", "b"])
    append_lines(tmp_path / "log.jsonl", ["c"])
    assert (tmp_path / "log.jsonl").read_text() == "a\nb\nc\n"
    append_lines(tmp_path / "nowhere" / "log.jsonl", ["d"])
    assert "nowhere/log.jsonl cannot be written (No such file or directory)" in caplog.text


def test_python_goes_on_while_a_file_of_tensors_is_written(tmp_path: Path) -> None:
    """Training steps go on beside a save. safetensors 0.7 held Python's lock for half of the time that this takes."""
    assert min(longest_pause(tmp_path / f"{n}.safetensors") for n in range(3)) < 0.3


def longest_pause(path: Path) -> float:
    """As a share of the time that a file of tensors takes."""
    tensors = {"a": torch.zeros(1 << 26)}
    writer = threading.Thread(target=save_tensors, args=(tensors, path))
    longest, before = 0.0, (began := time.monotonic())
    writer.start()
    while writer.is_alive():
        time.sleep(0.001)
        now = time.monotonic()
        longest, before = max(longest, now - before), now
    return longest / (before - began)
