"""A rank of `tests/many_ranks.py`: the trainer, which counts what each part of the control plane costs on this rank.

Counted are opens and stats of files below the current folder, and writes to sockets and files with their bytes. The watch
sleeps, so that its requests, which depend on time, do not blur the other parts. One round of it is counted after the start.
Requests are those of Python to rank 0's store, with the bytes of keys and values. Gloo's own are not among them, nor looks for
a key (`check`), whose number depends on time. The meeting and the watch take every four ranks for a host. What a thread of a
save writes is counted where the save begins.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from ijepa_ds import train
from ijepa_ds.checkpoint import saver

PARTS = {  # part -> functions that it consists of
    "join": ("ijepa_ds.training.start:meet", "ijepa_ds.training.start:initialise_distributed"),
    "watch: start": ("ijepa_ds.cluster.watch:Watch.follow",),
    "first group": ("ijepa_ds.training.start:host_barrier",),
    "run directory": ("ijepa_ds.checkpoint.run_dir:check_writable", "ijepa_ds.cluster.rank_log:open_log"),
    "scan and index": ("ijepa_ds.training.start:find_images",),
    "find a checkpoint": ("ijepa_ds.training.start:_find_start",),
    "load a checkpoint": ("ijepa_ds.checkpoint.restore:load",),
    "images of evaluations": ("ijepa_ds.training.start:_live_eval",),
    "DeepSpeed's engine": ("ijepa_ds.training.start:Engine",),
    "agreement, a step": ("ijepa_ds.distributed.agreement:Agreement.post", "ijepa_ds.distributed.agreement:Agreement.wait"),
    "bad images": ("ijepa_ds.training.around:BadImages.after_step",),
    "save": ("ijepa_ds.training.around:Checkpoints.after_step", "ijepa_ds.training.around:Saves.after_step"),
    "evaluation": ("ijepa_ds.training.live_eval:LiveEval.run",),
}
COSTS = ("opens", "stats", "messages", "bytes", "requests", "request bytes")
A_HOST = 4  # ranks
_REQUESTS = ("add", "compare_set", "get", "multi_get", "set")


class Counts:
    """What this process has done so far, and what each part took of it."""

    def __init__(self, place: str) -> None:
        self._place, self.files, self._stack = place, Counter[str](), list[str]()
        self._last = Counter[str]()
        self.parts: dict[str, Counter[str]] = {}
        self.calls = Counter[str]()

    def follow_files(self) -> None:
        """Count opens and stats of files below the folder."""
        for owner, name, what in (
            (os, "open", "opens"),
            (builtins, "open", "opens"),
            (os, "stat", "stats"),
            (import_module("io"), "open", "opens"),
            (import_module("ijepa_ds.checkpoint.reader"), "safe_open", "opens"),
        ):
            setattr(owner, name, self._counting(getattr(owner, name), what))

    def _counting(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        def counted(path: Any, *rest: Any, **named: Any) -> Any:
            with suppress(TypeError, ValueError):  # a descriptor
                if os.path.abspath(os.fsdecode(path)).startswith(self._place):
                    self.files[what] += 1
            return function(path, *rest, **named)

        return counted

    def follow_requests(self) -> None:
        """Count what is asked of rank 0's store."""
        for name in _REQUESTS:
            setattr(TCPStore, name, self._counting_request(getattr(TCPStore, name)))

    def _counting_request(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(store: TCPStore, *values: Any) -> Any:
            answer = method(store, *values)
            self.files["requests"] += 1
            self.files["request bytes"] += _num_bytes(values) + _num_bytes(answer)
            return answer

        return counted

    def now(self) -> Counter[str]:
        """Everything so far."""
        with open("/proc/self/io", encoding="ascii") as file:
            io = dict(line.split(": ") for line in file.read().splitlines())
        return self.files | Counter({"messages": int(io["syscw"]), "bytes": int(io["wchar"])})

    def switch(self, enter: str | None) -> None:
        """Give what happened since the last call to the part under way; then enter another one, or leave it."""
        now = self.now()
        if self._stack:
            self.parts.setdefault(self._stack[-1], Counter()).update(now - self._last)
        if enter is None:
            self._stack.pop()
        else:
            self._stack.append(enter)
        self._last = now

    def attribute(self, part: str, where: str) -> None:
        """Give what a function does to a part."""
        module, _, path = where.partition(":")
        owner: Any = import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        function = getattr(owner, name)

        def inside(*arguments: Any, **named: Any) -> Any:
            self.switch(part)
            try:
                return function(*arguments, **named)
            finally:
                self.switch(None)
                self.calls[part] += 1

        setattr(owner, name, inside)


def _num_bytes(value: Any) -> int:
    """Bytes of texts, also in lists; 8 of a number."""
    if isinstance(value, list | tuple):
        return sum(map(_num_bytes, value))
    return len(value) if isinstance(value, str | bytes) else 8


def _at_once() -> None:
    """The thread of a save ends before training goes on, so that what it writes belongs to the save."""
    begin = saver._Task.__init__

    def begin_and_end(task: Any, work: Callable[[], Any]) -> None:
        begin(task, work)
        task.thread.join()

    saver._Task.__init__ = begin_and_end  # type: ignore[method-assign]


def main() -> int:
    """Train; leave `counts/counts-RANK.json`."""
    from ijepa_ds.cluster import meeting, watch
    from ijepa_ds.distributed.exchange import host_barrier
    from ijepa_ds.training import start

    watch._TICK = 3600.0
    place_of_all = meeting.this_place()
    meeting.this_place = lambda: f"{place_of_all}-{int(os.environ['RANK']) // A_HOST}"
    _at_once()
    place = Path.cwd()
    counts = Counts(str(place))
    counts.follow_files()
    counts.follow_requests()
    for part, functions in PARTS.items():
        for where in functions:
            counts.attribute(part, where)
    prepare = start.prepare

    def prepared(*arguments: Any) -> Any:
        run = prepare(*arguments)
        host_barrier()
        for peer in run.watch._peers.values():
            peer.heard = time.monotonic()  # it has slept
        counts.switch("watch: a round")
        run.watch._use_store(time.monotonic(), watch._JUDGE_EVERY)
        time.sleep(1.0)  # rank 0 answers the others meanwhile
        counts.switch(None)
        counts.calls["watch: a round"] += 1
        host_barrier()
        return run

    start.prepare = prepared
    code = train.main()
    text = json.dumps({"parts": counts.parts, "calls": counts.calls})
    (place / "counts" / f"counts-{os.environ['RANK']}.json").write_text(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
