"""The lock of the run directory, and a second check through the file system where locks hold on one host only."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import platform
import secrets
from pathlib import Path
from typing import IO

from ijepa_ds.errors import CheckpointError, StorageError, UserError, is_fault

logger = logging.getLogger(__name__)
_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP})
_TOKEN = secrets.token_hex(8)  # containers on several hosts may have the same name and process number


def lock(run_dir: Path) -> IO[str]:
    """Lock the directory against other runs while the returned file is open; a dead owner holds no lock.

    Without locks on the file system (some network file systems), the run goes on with a warning.

    Raises:
        UserError: another live process trains there, or the directory is not writable.
        StorageError: its storage fails.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = (run_dir / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise refusal([(run_dir, error)]) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            logger.warning(
                "%s: no locks on its file system (%s): a second run in it is noticed only when the first one saves. Mount it "
                "with `-o flock` (Lustre), start lockd (NFS), or make sure that only one job uses the directory",
                run_dir,
                error.strerror,
            )
        elif not isinstance(error, BlockingIOError):
            handle.close()
            raise
        else:
            handle.seek(0)
            owner = handle.readline().strip() or "unknown"
            handle.close()
            raise UserError(f"{run_dir} is in use by another run (process {owner}): wait for its end, or stop it") from error
    try:
        handle.truncate(0)
        handle.write(_owner())
        handle.flush()
        os.fsync(handle.fileno())  # other hosts read it
    except OSError as error:
        raise refusal([(run_dir, error)]) from error
    return handle


def check_lock(run_dir: Path) -> None:
    """Check, before a checkpoint is written, that no other run has locked the directory since this process did.

    A lock holds on one host only where Lustre is mounted with `-o localflock`, and nowhere without locks. The lock's file is
    the same on all hosts, and the later run has written its name there.

    Raises:
        CheckpointError: another run uses the directory.
    """
    try:
        owner = (run_dir / ".lock").read_text(encoding="utf-8").strip()
    except OSError:  # no lock was asked for, or the write that follows meets the same fault
        return
    if owner and owner != _owner():
        raise CheckpointError(
            f"another run (process {owner.splitlines()[0]}) began in {run_dir} while this one (process {os.getpid()}) trains "
            "there: locks of its file system do not reach other hosts (Lustre: mount it with `-o flock` instead of "
            "`localflock`). Stop one of them"
        )


def _owner() -> str:
    return f"{os.getpid()} on {platform.node()}\n{_TOKEN}"


def refusal(problems: list[tuple[Path, OSError]]) -> UserError | StorageError:
    """The error for folders and files that cannot be written."""
    named = [f"run.dir: {path} cannot be written ({error.strerror})" for path, error in problems]
    if any(is_fault(error) for _, error in problems):
        return StorageError("\n".join(named) + ": a fault of its storage; run the same command again when it works")
    return UserError("\n".join(f"{text}: choose another run.dir, or make it writable" for text in named))
