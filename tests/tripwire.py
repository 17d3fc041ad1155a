"""Open files and report what else the process did: `python -m tests.tripwire < [[KIND, PATH], ...]`, answers in JSON.

An audit hook (PEP 578) sees sockets, new processes, unpickled classes and everything that changes a file. It refuses and notes
each of them. It cannot be removed, so this is a process of its own. `control` does all four, and shows that the hook sees them.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("mkdir", "rmdir", "rename", "remove", "link", "symlink", "truncate", "chmod", "chown", "utime", "mkfifo", "mknod")
_STARTS = ("system", "exec", "posix_spawn", "fork", "forkpty", "spawn")
_REFUSED = {f"os.{name}" for name in (*_CHANGES, *_STARTS)} | {"subprocess.Popen", "pty.spawn", "pickle.find_class"}


class Wire:
    """The hook, and what it has seen."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if event in _REFUSED or event.startswith("socket.") or (writes and arguments[0] != os.devnull):
            self.seen.append(f"{event} {arguments!r:.200}")
            raise PermissionError(f"refused by the test: {event}")


def control(path: Path) -> None:
    """What the hook must see."""
    for act in (
        lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        lambda: subprocess.run(["true"], check=False),
        lambda: pickle.loads(path.read_bytes()),
        lambda: path.with_name("written").write_text("x"),
    ):
        with contextlib.suppress(OSError, pickle.UnpicklingError):
            act()


def openers() -> dict[str, Callable[[Path], object]]:
    """Everything that opens a file which users get from others. What it imports is imported before the hook."""
    import timm  # noqa: F401

    from ijepa_ds import config
    from ijepa_ds.checkpoint.reader import CheckpointReader
    from ijepa_ds.cluster import hosts
    from ijepa_ds.config import published
    from ijepa_ds.data.reading import Reader
    from ijepa_ds.data.sources import open_source as open_images
    from ijepa_ds.decoder.network import load as load_decoder
    from ijepa_ds.visualize.report_runs import read_run
    from ijepa_ds.weights.encoder import read_encoder
    from ijepa_ds.weights.open import open_source as open_weights

    def images(path: Path) -> None:
        index = open_images(str(path))
        for i in index.readable():
            Reader(index).read(i)

    return {
        "control": control,
        "weights": read_encoder,
        "run": open_weights,
        "config": lambda path: config.load(path, []),
        "published": lambda path: published.load_any(path, []),
        "images": images,
        "hostfile": hosts.parse_hostfile,
        "environment": hosts.parse_environment,
        "checkpoint": CheckpointReader,
        "decoder": load_decoder,
        "report": lambda path: read_run(path, "x"),
    }


def main() -> None:
    wanted, kinds = json.load(sys.stdin), openers()
    wire = Wire()
    for kind, path in wanted:
        wire.seen.clear()
        try:
            kinds[kind](Path(path))
            error = ""
        except Exception as found:
            error = f"{type(found).__module__}.{type(found).__name__}: {found}"
        print(json.dumps({"kind": kind, "path": path, "did": [*wire.seen], "error": error}), flush=True)


if __name__ == "__main__":
    main()
