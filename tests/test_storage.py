"""Waiting for storage: which errors are waited for, for how long, and what is said."""

import errno
import logging
import threading

import pytest

from ijepa_ds import storage, versions
from ijepa_ds.errors import (
    CheckpointError,
    ContentError,
    DeviceError,
    NetworkError,
    StorageError,
    TrainingError,
    UserError,
    exit_code,
    is_fault,
)
from ijepa_ds.exits import USER_ERROR
from ijepa_ds.storage import Storage


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(storage, "_PAUSES", (0.001, 0.002))


@pytest.mark.parametrize(
    "name", ["EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM", "ENOTCONN", "ESHUTDOWN", "ECONNRESET"]
)
def test_faults_of_storage_are_waited_for(name, caplog):
    left, reopened = [1, 2, 3], []

    def work() -> str:
        if left:
            left.pop()
            raise OSError(getattr(errno, name), "broken")
        return "content"

    place = Storage(100)
    assert place.call(work, "'a.jpg'", reopen=lambda: reopened.append(1)) == "content"
    assert len(reopened) == 3 and not place.waiting
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 2 and "'a.jpg': broken" in said[0] and "answers again" in said[1]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ELOOP, errno.ENOSPC])
def test_faults_of_a_file_are_raised_at_once(code):
    calls = []

    def work() -> None:
        calls.append(1)
        raise OSError(code, "broken")

    with pytest.raises(OSError):
        Storage(100).call(work, "'a.jpg'")
    assert len(calls) == 1 and not is_fault(OSError(code, "broken"))


def test_after_the_time_limit_the_storage_is_named():
    def work() -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(StorageError, match=r"'/data/a\.jpg': Input/output error for .*storage_timeout: 0\.05.*not of the file"):
        Storage(0.05).call(work, "'/data/a.jpg'")


def test_closing_ends_the_waiting(monkeypatch):
    monkeypatch.setattr(storage, "_PAUSES", (1000.0, 1000.0))
    place, ended = Storage(10_000), threading.Event()

    def work() -> None:
        raise OSError(errno.EIO, "Input/output error")

    def wait() -> None:
        with pytest.raises(StorageError, match="the run ends"):
            place.call(work, "'a.jpg'")
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    place.close()
    assert ended.wait(60)


@pytest.mark.parametrize(
    "error, code",
    [
        (UserError("a key"), 2),
        (CheckpointError("broken"), 2),
        (TrainingError("diverged"), 2),
        (FileNotFoundError(errno.ENOENT, "No such file", "run.yaml"), 2),
        (OSError(errno.ENOSPC, "No space left"), 2),
        (StorageError("no answer"), 75),
        (NetworkError("no answer"), 75),
        (OSError(errno.ESTALE, "Stale file handle"), 75),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 75),
        (ValueError("a bug"), 1),
        (ContentError("an image"), 1),
        (DeviceError("a GPU"), 1),
        (RuntimeError("a bug"), 1),
        (OSError("without a number"), 1),
    ],
)
def test_the_exit_code_says_what_has_to_happen_next(error, code):
    assert exit_code(error) == code


def test_a_deepspeed_that_is_not_supported_is_the_user_s_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions.metadata, "version", lambda name: "0.18.2")
    with pytest.raises(UserError, match=r"deepspeed 0\.18\.2 is installed.*pip install 'deepspeed~=0\.19\.8'") as refused:
        versions.check_deepspeed()
    assert exit_code(refused.value) == USER_ERROR
