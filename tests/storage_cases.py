"""A file system that misbehaves on command: calls of `os` on chosen paths raise a chosen error, once or for a while."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Fault:
    """The first `times` calls of `call` (open, pread, scandir, stat, rename) on a path that contains `part` raise `code`."""

    call: str
    part: str
    code: int
    times: float = float("inf")
    seen: int = 0  # calls that it made fail


class Misbehaving:
    """Stands in for `os` while a test runs. pread knows the path of a descriptor that was opened here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.faults: list[Fault] = []
        self.opened: list[str] = []
        for name in ("open", "scandir", "stat", "rename", "pread"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def fail(self, call: str, part: str, code: int, times: float = float("inf")) -> Fault:
        """From now on make calls fail."""
        self.faults.append(Fault(call, part, code, times))
        return self.faults[-1]

    def mend(self) -> None:
        """From now on all calls work."""
        self.faults.clear()

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *rest: Any, **keys: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if name == "pread" else os.fsdecode(target)
            for fault in self.faults:
                if fault.call == name and fault.part in path and fault.seen < fault.times:
                    fault.seen += 1
                    raise OSError(fault.code, os.strerror(fault.code), path)
            if name == "open":
                self.opened.append(path)
            return real(target, *rest, **keys)

        return call
