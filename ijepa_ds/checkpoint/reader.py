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

from ijepa_ds.checkpoint import ranges
from ijepa_ds.checkpoint.folder import check_files, find_steps, folder_name
from ijepa_ds.checkpoint.ranges import Run
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
    """A validated checkpoint folder. A file is opened when something of it is read first."""

    def __init__(self, folder: Path, verify: bool = True, manifest: dict[str, Any] | None = None) -> None:
        """Validate.

        Args:
            folder: `RUN/checkpoints/step_...`.
            verify: compare checksums, which reads every file once; otherwise only names and sizes.
            manifest: of the folder, whose files have been compared with it already; nothing is compared again.

        Raises:
            CheckpointError: a file is missing, or its size or checksum differs, or the folder is not a checkpoint.
        """
        self.folder = folder
        self.manifest = manifest or check_files(folder, (0, 1) if verify else (0, 0))
        self._files: dict[int, tuple[Any, dict[str, int]]] = {}  # number -> (open file, starts)
        try:
            table = ranges.read(self.manifest)
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / 'manifest.json'}: `ranges` is damaged ({error})") from error
        self._where: dict[str, list[Run]] = self._look() if table is None else table

    def _look(self) -> dict[str, list[Run]]:
        """What each file has, from the files themselves: manifests of before `ranges` do not say it."""
        found: dict[str, list[Run]] = {}
        for number in range(len(self.manifest["files"])):
            file, starts = self._open(number)
            for key, start in starts.items():
                (numel,) = file.get_slice(key).get_shape()
                found.setdefault(key, []).append(Run(number, 1, start, numel))
        return found

    def _open(self, number: int) -> tuple[Any, dict[str, int]]:
        """A file, and where its pieces begin."""
        if number not in self._files:
            path = self.folder / self.manifest["files"][number]["file"]
            try:
                file = safe_open(path, framework="pt")  # memory-mapped: slices are loaded when they are read
                starts = json.loads(file.metadata()["starts"])
                self._files[number] = file, {key: int(starts[key]) for key in file.keys()}
            except (SafetensorError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{path}: not a shard of a checkpoint ({type(error).__name__}: {error})") from error
        return self._files[number]

    def numel(self, key: str) -> int:
        """Number of elements of a whole parameter, e.g. `ema/encoder.norm.weight`.

        Raises:
            CheckpointError: the parameter is missing or incomplete.
        """
        if key not in self._where:
            raise CheckpointError(f"{self.folder} has no {key}: it was saved from another model")
        reached = 0
        for run in sorted(self._where[key], key=lambda run: run.start):
            if run.start != reached:
                raise CheckpointError(f"{self.folder}: {key} has a gap or an overlap at element {min(run.start, reached)}")
            reached = run.end
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
        for run in self._where[key]:
            for number, start in run.overlapping(low, high):
                begin, stop = max(low, start), min(high, start + run.numel)
                result[begin - low : stop - low] = self._piece(number, key, start, run.numel)[begin - start : stop - start]
                filled += stop - begin
        if filled != high - low:
            raise CheckpointError(f"{self.folder}: {key} has {filled} of the {high - low} requested elements")
        return result

    def _piece(self, number: int, key: str, start: int, numel: int) -> Any:
        """The part of a parameter that a file has; it must be where the manifest says."""
        file, starts = self._open(number)
        if starts.get(key) != start or file.get_slice(key).get_shape() != [numel]:
            name = self.manifest["files"][number]["file"]
            raise CheckpointError(
                f"{self.folder / name} does not have elements {start} to {start + numel} of {key}, as the manifest says"
            )
        return file.get_slice(key)


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
