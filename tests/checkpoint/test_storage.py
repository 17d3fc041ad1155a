"""Faults of storage around checkpoints and the run directory: what is saved counts, and what may pass is not the user's."""

import errno
import fcntl
import json
import os
from pathlib import Path

import pytest

from ijepa_ds.checkpoint import run_dir, run_lock, writer
from ijepa_ds.checkpoint.folder import check_files, list_steps, read_last_step
from ijepa_ds.checkpoint.reader import newest
from ijepa_ds.errors import CheckpointError, StorageError, UserError


def commit(run: Path, step: int) -> Path:
    folder = writer.partial_folder(run, step, "x")
    folder.mkdir(parents=True)
    (folder / "shard").write_text("s")
    entry = {"file": "shard", "bytes": 1, "sha256": "0", "rank": 0, "host": "h"}
    manifest = {"format": 1, "step": step, "adam_step": step, "files": [entry]}
    return writer.commit(run, step, "x", manifest, keep_last=1, keep_every=0)


@pytest.mark.parametrize("part", ["step_00000001.removed", "last_checkpoint.json"])
def test_a_failure_after_the_rename_is_a_warning(part, tmp_path, monkeypatch, caplog):
    """EBUSY: another process holds a file of the older checkpoint open on NFS."""
    commit(tmp_path, 1)
    real = Path.rename, Path.replace

    def refuse(path: Path, target: object, which: int) -> Path:
        if part in str(target):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return real[which](path, target)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "rename", lambda path, target: refuse(path, target, 0))
    monkeypatch.setattr(Path, "replace", lambda path, target: refuse(path, target, 1))
    folder = commit(tmp_path, 2)
    assert check_files(folder, (0, 0))["step"] == 2 and list_steps(tmp_path) == [1, 2]
    assert "checkpoint of step 2 is saved" in caplog.text and "Device or resource busy" in caplog.text
    monkeypatch.undo()
    commit(tmp_path, 3)
    assert list_steps(tmp_path) == [3] and read_last_step(tmp_path) == 3


def test_a_failure_before_the_rename_is_an_error(tmp_path, monkeypatch):
    def refuse(path: Path, target: object) -> Path:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"):
        commit(tmp_path, 1)
    assert list_steps(tmp_path) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_and_survived(code, tmp_path, monkeypatch, caplog):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    first = run_lock.lock(tmp_path / "run")
    assert "no locks on its file system" in caplog.text
    run_lock.check_lock(tmp_path / "run")
    first.close()


def test_a_lock_that_another_host_does_not_see_is_found_out_at_the_next_save(tmp_path, monkeypatch):
    """Lustre's localflock: both hosts get the lock. The earlier run must not write into the later one's checkpoints."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    run_lock.check_lock(tmp_path / "run")  # not locked
    with run_lock.lock(tmp_path / "run"):
        run_lock.check_lock(tmp_path / "run")
        with monkeypatch.context() as there:
            there.setattr("platform.node", lambda: "node-9")
            with run_lock.lock(tmp_path / "run"):
                run_lock.check_lock(tmp_path / "run")
        with pytest.raises(CheckpointError, match=r"another run \(process \d+ on node-9\) began in .*localflock"):
            run_lock.check_lock(tmp_path / "run")


@pytest.mark.parametrize(("code", "error"), [(errno.EIO, StorageError), (errno.EACCES, UserError), (errno.ENOSPC, UserError)])
def test_a_run_directory_that_cannot_be_written(code, error, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(error, match=f"run.dir: .*cannot be written .{os.strerror(code)}"):
        run_dir.check_writable(tmp_path / "run")
    with pytest.raises(error):
        run_lock.lock(tmp_path / "run")


def test_storage_that_fails_does_not_make_an_older_checkpoint_the_newest(tmp_path, monkeypatch):
    """EIO on the newest manifest is no damage: continuing from an older one would lose steps."""
    for step in (1, 2):
        folder = tmp_path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    real = Path.read_text

    def refuse(path: Path, *rest: object, **keys: object) -> str:
        if "step_00000002" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *rest, **keys)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(StorageError, match=r"step_00000002.*Input/output error"):
        newest(tmp_path)


def test_a_stop_leaves_a_marker_for_the_supervisor(tmp_path):
    run_dir.mark_stopped(tmp_path, "stopped by SIGTERM after step 4")
    assert json.loads((tmp_path / "stopped.json").read_text()) == {"reason": "stopped by SIGTERM after step 4"}
