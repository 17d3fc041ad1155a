"""Open files and report what else the process did: `python -m tests.tripwire < [[KIND, PATH], ...]`, answers in JSON.

An audit hook (PEP 578) sees sockets, new processes, unpickled classes and everything that changes a file. It refuses and notes
each of them. It cannot be removed, so this is a process of its own. `control` does all four, and shows that the hook sees them.
The hook does not see native code (pyarrow speaks to S3 and HDFS): the kernel ends the process at its first socket or program.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = ("mkdir", "rmdir", "rename", "remove", "link", "symlink", "truncate", "chmod", "chown", "utime", "mkfifo", "mknod")
_STARTS = ("system", "exec", "posix_spawn", "fork", "forkpty", "spawn")
_CHANGING = {f"os.{name}" for name in _CHANGES}
_REFUSED = _CHANGING | {f"os.{name}" for name in _STARTS} | {"subprocess.Popen", "pty.spawn", "pickle.find_class"}


_OWN = ("journal", "features")  # kinds that are written where they lie
# x86_64 and aarch64: the kernel's number of the architecture; system calls socket, execve and execveat
_CALLS = {"x86_64": (0xC000003E, (41, 59, 322)), "aarch64": (0xC00000B7, (198, 221, 281))}


def guard_natively() -> bool:
    """Have the kernel kill this process when it opens a socket or starts a program; False: not on this machine.

    A seccomp filter: load a word of `seccomp_data`, compare it, jump. Everything else is allowed.
    """
    architecture, calls = _CALLS.get(platform.machine(), (0, ()))
    load, equal, end, kill, allow = 0x20, 0x15, 0x06, 0x80000000, 0x7FFF0000
    steps = [(load, 0, 0, 4), (equal, 0, 1 + len(calls), architecture), (load, 0, 0, 0)]
    steps += [(equal, len(calls) - number, 0, call) for number, call in enumerate(calls)]
    steps += [(end, 0, 0, allow), (end, 0, 0, kill)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    return (
        bool(calls)
        and not prctl(no_new_privileges, 1, 0, 0, 0)
        and not prctl(seccomp, by_filter, ctypes.addressof(program), 0, 0)
    )


class Wire:
    """The hook, and what it has seen."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.own: Path | None = None  # a folder that may be changed
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        if self.own and (writes or event in _CHANGING) and str(arguments[0]).startswith(f"{self.own}/"):
            return
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
    from ijepa_ds.config.batch import plan_batch
    from ijepa_ds.config.deepspeed_json import read_deepspeed
    from ijepa_ds.data.journal import Journal
    from ijepa_ds.data.reading import Reader
    from ijepa_ds.data.sources import open_source as open_images
    from ijepa_ds.decoder.network import load as load_decoder
    from ijepa_ds.doctor.probe import decode_sample
    from ijepa_ds.evals.cache import FeatureCache
    from ijepa_ds.evals.dense.pairs import Source, read_dense
    from ijepa_ds.evals.scenes import read_scenes
    from ijepa_ds.evals.table import collect
    from ijepa_ds.plan.hardware import device_of
    from ijepa_ds.scale.ladder import read as read_ladder
    from ijepa_ds.telemetry.events import read_picture
    from ijepa_ds.telemetry.metrics_file import read_metrics
    from ijepa_ds.visualize.report_runs import read_run
    from ijepa_ds.weights.encoder import read_encoder
    from ijepa_ds.weights.open import open_source as open_weights

    def images(path: Path) -> None:
        index = open_images(str(path))
        for i in index.readable():
            Reader(index).read(i)

    def dense(path: Path, task: str) -> None:
        read_dense(str(path), str(path), Source(task=task, max_pixels=10**6), threads=1)

    def journal(path: Path) -> None:
        opened = Journal(path)
        opened.find(bytes(16))
        opened.close()

    return {
        "control": control,
        "segment": lambda path: dense(path, "segment"),
        "depth": lambda path: dense(path, "depth"),
        "scenes": lambda path: read_scenes("count", str(path), str(path)),
        "journal": journal,
        "features": lambda path: FeatureCache(path.parent, 1.0).find(path.name.partition(".")[0], 2),
        "deepspeed": lambda path: read_deepspeed(path, plan_batch(8, 8, 1), 0.0, "float32"),
        "device": lambda path: device_of(str(path), 1),
        "ladder": read_ladder,
        "scores": lambda path: collect([path]),
        "metrics": read_metrics,
        "picture": lambda path: read_picture(path, "images/masks"),
        "sample": lambda path: decode_sample(str(path), path.read_bytes()),
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
    guard_natively()
    for kind, path in wanted:
        wire.seen.clear()
        wire.own = Path(path).parent if kind in _OWN else None
        try:
            kinds[kind](Path(path))
            error = ""
        except Exception as found:
            error = f"{type(found).__module__}.{type(found).__name__}: {found}"
        print(json.dumps({"kind": kind, "path": path, "did": [*wire.seen], "error": error}), flush=True)


if __name__ == "__main__":
    main()
