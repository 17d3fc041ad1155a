"""A mount that a test stops, loses and brings back: bindfs (FUSE) shows a folder at another place. Needs root."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

from ijepa_ds.cluster.processes import end_with_parent
from tests.waiting import limit, wait_until

_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS


def why_not() -> str:
    """Why no such mount can be made here; empty: it can."""
    if os.geteuid() != 0:
        return "not root"
    if not shutil.which("bindfs"):
        return "bindfs is not installed"
    return "" if os.path.exists("/dev/fuse") else "there is no /dev/fuse"


class Mount:
    """The folder `real`, shown at `at`."""

    def __init__(self, real: Path, at: Path) -> None:
        """Mount it."""
        self._real, self._at = real, at
        self._timer: threading.Timer | None = None
        real.mkdir(exist_ok=True)
        at.mkdir()
        self.mount()

    def mount(self) -> None:
        """Mount it, for the first time or after `lose`."""
        command = ["bindfs", "-f", str(self._real), str(self._at)]
        before = os.lstat(self._at.parent).st_dev
        self._server = subprocess.Popen(command, preexec_fn=lambda: end_with_parent(signal.SIGTERM), start_new_session=True)
        wait_until(lambda: os.lstat(self._at).st_dev != before or self._server.poll() is not None, 30, "bindfs")
        assert self._server.poll() is None, "bindfs ended"

    def stop(self) -> None:
        """From now on calls do not return (a hard NFS mount whose server is gone)."""
        self._server.send_signal(signal.SIGSTOP)
        self._timer = threading.Timer(limit(240), self._server.kill)  # a process that waits in the kernel cannot be killed
        self._timer.daemon = True
        self._timer.start()

    def go_on(self) -> None:
        """The calls of `stop` return."""
        assert self._timer is not None
        self._timer.cancel()
        self._server.send_signal(signal.SIGCONT)

    def lose(self) -> None:
        """From now on every call fails with ENOTCONN, those under way too."""
        self._server.kill()
        self._server.wait()

    def come_back(self) -> None:
        """After `lose`: mount it again."""
        self._unmount()
        self.mount()

    def close(self) -> None:
        """Remove it."""
        if self._timer:
            self._timer.cancel()
        self.lose()
        self._unmount()

    def _unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self._at)], check=True)


def cover(folder: str, by: str) -> None:
    """In a rank's process, before it has threads: show it `by` at `folder`, as if its host had another mount there."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "--bind", by, folder], check=True)
