"""`metrics.jsonl`: the scalars of a run, one line of JSON a step, {"step", "time", tag: value, ...}.

It survives what hides points in TensorBoard: a clock that is behind, other tools' files, a deleted event file. A resumed run
cuts the lines of steps that it makes again, so every step is there once.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ijepa_ds.durable import fsync
from ijepa_ds.errors import UserError

NAME = "metrics.jsonl"
_LONGEST = 1 << 20  # bytes of a line
_STEP = re.compile(rb'\{"step": (\d+),')
Scalars = dict[str, tuple[np.ndarray, np.ndarray]]  # tag -> (steps int64 [n], values float64 [n])


class MetricsFile:
    """Appends to the file; values of the step that was written last are added to its line."""

    def __init__(self, run_dir: Path, first_step: int, earlier: Iterable[Mapping[str, Any]] = ()) -> None:
        """Cut the lines from `first_step` on, and a last line that is not whole.

        Args:
            run_dir: of the run.
            first_step: the first step that is still to come.
            earlier: lines for a file that is not there yet, of steps before.

        Raises:
            OSError: the file cannot be written.
        """
        self._path = run_dir / NAME
        self._last: dict[str, Any] = {}
        self._at = 0  # where the last line begins
        if self._path.exists():
            self._cut(first_step)
        else:
            lines = [_line(one) for one in earlier if one["step"] < first_step]
            if lines:
                self._path.write_bytes(b"".join(lines))

    def _cut(self, first_step: int) -> None:
        at = 0
        with self._path.open("r+b") as file:
            for line in file:
                match = _STEP.match(line)
                if not line.endswith(b"\n") or (match and int(match[1]) >= first_step):
                    break
                at += len(line)
            file.truncate(at)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step.

        Raises:
            OSError: the file cannot be written.
        """
        again = self._last.get("step") == step
        line = {**(self._last if again else {"step": step, "time": round(time.time(), 3)}), **values}
        with self._path.open("r+b" if self._path.exists() else "w+b") as file:
            at = self._at if again else _end_of_lines(file)
            file.seek(at)
            file.truncate()
            file.write(_line(line))
        self._last, self._at = line, at

    def flush(self) -> None:
        """Flush it to disk."""
        if self._path.exists():
            fsync(self._path)


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line ends; behind it is half a line if a write met a full disk."""
    size = file.seek(0, 2)
    start = max(0, size - _LONGEST)
    file.seek(start)
    return start + file.read().rfind(b"\n") + 1


def _line(values: Mapping[str, Any]) -> bytes:
    shown = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    return (json.dumps(shown) + "\n").encode()


def read_lines(run_dir: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run, in order; a last line that is being written is left out, and so is a repeated step's first.

    Raises:
        UserError: another line is damaged.
    """
    path, found = run_dir / NAME, dict[int, dict[str, Any]]()
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = json.loads(text)
            found[int(line["step"])] = line
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: damaged ({error}); delete that line") from error
    yield from (found[step] for step in sorted(found))


def read_metrics(run_dir: Path) -> Scalars:
    """All scalars in the file; a value that was not finite is NaN."""
    points: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
    for line in read_lines(run_dir):
        for tag, value in line.items():
            if tag not in ("step", "time"):
                points[tag][0].append(line["step"])
                points[tag][1].append(math.nan if value is None else value)
    return {tag: (np.array(steps, np.int64), np.array(values, np.float64)) for tag, (steps, values) in points.items()}
