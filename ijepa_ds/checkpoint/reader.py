"""Read checkpoints: find and validate them, read any slice of any parameter. Needs neither DeepSpeed nor other ranks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ijepa_ds.checkpoint.folder import check_files, find_steps, folder_name
from ijepa_ds.errors import CheckpointError

logger = logging.getLogger(__name__)


class Slice(Protocol):
    """A range of a flattened parameter."""

    @property
    def start(self) -> int:
        """Index of its first element."""

    @property
    def numel(self) -> int:
        """Number of its elements."""


class CheckpointReader:
    """A validated checkpoint folder, opened for reading."""

    def __init__(self, folder: Path, verify: bool = True) -> None:
        """Validate and open.

        Args:
            folder: `RUN/checkpoints/step_...`.
            verify: compare checksums, which reads every file once; otherwise only names and sizes.

        Raises:
            CheckpointError: a file is missing, or its size or checksum differs, or the folder is not a checkpoint.
        """
        self.folder = folder
        self.manifest = check_files(folder, (0, 1) if verify else (0, 0))
        self._where: dict[str, list[tuple[int, int, Any]]] = {}  # key -> (start, end, open file)
        for entry in self.manifest["files"]:
            self._index(folder / entry["file"])

    def _index(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")  # memory-mapped: slices are loaded when they are read
            starts = json.loads(file.metadata()["starts"])
            for key in file.keys():
                (numel,) = file.get_slice(key).get_shape()
                self._where.setdefault(key, []).append((int(starts[key]), int(starts[key]) + numel, file))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a shard of a checkpoint ({type(error).__name__}: {error})") from error

    def numel(self, key: str) -> int:
        """Number of elements of a whole parameter, e.g. `ema/encoder.norm.weight`.

        Raises:
            CheckpointError: the parameter is missing or incomplete.
        """
        if key not in self._where:
            raise CheckpointError(f"{self.folder} has no {key}: it was saved from another model")
        reached = 0
        for start, end, _ in sorted(self._where[key], key=lambda part: part[0]):
            if start != reached:
                raise CheckpointError(f"{self.folder}: {key} has a gap or an overlap at element {min(start, reached)}")
            reached = end
        return reached

    def names(self, kind: str) -> list[str]:
        """Names of all parameters saved under `kind` (master, exp_avg, exp_avg_sq, ema)."""
        return sorted(key.split("/", 1)[1] for key in self._where if key.startswith(kind + "/"))

    def read(self, kind: str, name: str, part: Slice | None = None) -> Tensor:
        """A range of a flattened parameter, or all of it: float32 [numel] on the CPU.

        Raises:
            CheckpointError: the parameter is missing or incomplete.
        """
        key = f"{kind}/{name}"
        if key not in self._where:
            raise CheckpointError(f"{self.folder} has no {key}: it was saved from another model")
        low = part.start if part else 0
        high = low + part.numel if part else self.numel(key)
        result = torch.empty(high - low, dtype=torch.float32, device="cpu")
        filled = 0
        for start, end, file in self._where[key]:
            begin, stop = max(low, start), min(high, end)
            if begin < stop:
                result[begin - low : stop - low] = file.get_slice(key)[begin - start : stop - start]
                filled += stop - begin
        if filled != high - low:
            raise CheckpointError(f"{self.folder}: {key} has {filled} of the {high - low} requested elements")
        return result


def newest(
    run_dir: Path,
    steps: list[int] | None = None,
    open_checkpoint: Callable[[Path], CheckpointReader] | None = None,
    say: Callable[..., None] = logger.error,
) -> CheckpointReader | None:
    """The newest good checkpoint of a run; None if the run has no checkpoints.

    Broken ones are reported with the reason and passed over.

    Args:
        run_dir: the run.
        steps: result of `find_steps`, which is called if None.
        open_checkpoint: opens and validates one, or raises CheckpointError; `CheckpointReader` if None.
        say: receives messages about broken ones.

    Raises:
        CheckpointError: there are checkpoints and none is good.
    """
    reasons = []
    for step in reversed(find_steps(run_dir) if steps is None else steps):
        try:
            return (open_checkpoint or CheckpointReader)(run_dir / "checkpoints" / folder_name(step))
        except CheckpointError as error:
            reasons.append(str(error))
            say("CHECKPOINT NOT USABLE, trying an older one: %s", error)
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {run_dir / 'checkpoints'} is usable; refusing to start from "
            "scratch over them. " + "; ".join(reasons) + ". Restore one, or start anew in another run.dir"
        )
    return None
