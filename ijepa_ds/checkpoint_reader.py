"""Reading checkpoints: finding, validating, and any slice of any parameter. Needs neither DeepSpeed nor other ranks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

logger = logging.getLogger(__name__)
_LAST = "last_checkpoint.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the text names it and says why."""


class Slice(Protocol):
    """A range of a flattened parameter."""

    @property
    def start(self) -> int:
        """Its first element."""

    @property
    def numel(self) -> int:
        """How many elements it has."""


def folder_name(step: int) -> str:
    """The checkpoint folder's name after `step` steps."""
    return f"step_{step:08d}"


def list_steps(run_dir: Path) -> list[int]:
    """Steps that have a finished checkpoint in a run, ascending (not yet validated)."""
    parent = run_dir / "checkpoints"
    found = (re.fullmatch(r"step_(\d{8,})", p.name) for p in parent.iterdir()) if parent.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def write_last_step(run_dir: Path, step: int) -> None:
    """Note which checkpoint is the newest, so that its disappearance is noticed."""
    aside = run_dir / f".{_LAST}.partial"
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"step": step}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(run_dir / _LAST)


def read_last_step(run_dir: Path) -> int | None:
    """The step of the checkpoint saved last in a run; None when there never was one."""
    path = run_dir / _LAST
    if not path.is_file():
        return None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove it if the checkpoints beside it are whole") from error


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def looks_whole(folder: Path) -> bool:
    """Whether a checkpoint's manifest and the sizes of its files are right; what is in the files is not read."""
    try:
        check_files(folder, share=(0, 0))
    except CheckpointError:
        return False
    return True


def check_files(folder: Path, share: tuple[int, int] = (0, 1)) -> dict[str, Any]:
    """Compare a checkpoint's files with its manifest: names and sizes of all, checksums of a share of them.

    Args:
        folder: `RUN/checkpoints/step_...`.
        share: (rank, ranks): every so manyth file is read, beginning with this one; `(0, 1)` reads all, `(0, 0)` none.

    Returns:
        The manifest.

    Raises:
        CheckpointError: something is missing, of another size or checksum, or not a checkpoint.
    """
    manifest, (first, every) = _read_manifest(folder), share
    for index, entry in enumerate(manifest["files"]):
        _check_file(folder, entry, verify=bool(every) and index % every == first)
    return manifest


class CheckpointReader:
    """A validated checkpoint folder, opened for reading."""

    def __init__(self, folder: Path, verify: bool = True) -> None:
        """Validate and open.

        Args:
            folder: `RUN/checkpoints/step_...`.
            verify: read everything once to compare checksums; without it only names and sizes are compared.

        Raises:
            CheckpointError: something is missing, of another size or checksum, or not a checkpoint.
        """
        self.folder = folder
        self.manifest = check_files(folder, (0, 1) if verify else (0, 0))
        self._where: dict[str, list[tuple[int, int, Any]]] = {}  # key -> (start, end, open file)
        for entry in self.manifest["files"]:
            self._index(folder / entry["file"])

    def _index(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")  # memory-mapped: only what is read is loaded
            starts = json.loads(file.metadata()["starts"])
            for key in file.keys():
                (numel,) = file.get_slice(key).get_shape()
                self._where.setdefault(key, []).append((int(starts[key]), int(starts[key]) + numel, file))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a shard of a checkpoint ({type(error).__name__}: {error})") from error

    def numel(self, key: str) -> int:
        """Elements of a whole parameter, e.g. `ema/encoder.norm.weight`."""
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
        """A range of a flattened parameter, or all of it: float32 `[numel]` on the CPU."""
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
            raise CheckpointError(f"{self.folder}: {key} has {filled} of the {high - low} elements asked for")
        return result


def newest(
    run_dir: Path,
    steps: list[int] | None = None,
    open_checkpoint: Callable[[Path], CheckpointReader] | None = None,
    say: Callable[..., None] = logger.error,
) -> CheckpointReader | None:
    """The newest good checkpoint of a run; None when the run has none at all.

    A broken one is named, with the reason, and the next older is taken.

    Args:
        run_dir: the run.
        steps: what `find_steps` gave; None: asked here.
        open_checkpoint: opens and validates one, or raises CheckpointError; `CheckpointReader` when None.
        say: takes messages about broken ones.

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


def find_steps(run_dir: Path) -> list[int]:
    """Steps of which a run should have a checkpoint, ascending: those in place, and the one saved last if it vanished."""
    steps, last = list_steps(run_dir), read_last_step(run_dir)
    return steps if last is None else sorted({*steps, last})


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; not a finished checkpoint") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}): the manifest is damaged") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        raise CheckpointError(f"{path}: not a manifest of format 1: written by another version?")
    missing = {"step", "files", "adam_step"} - manifest.keys()
    if missing:
        raise CheckpointError(f"{path}: the manifest lacks {', '.join(sorted(missing))}")
    files = manifest["files"]
    if not isinstance(files, list) or not files or not all(isinstance(e, dict) and _ENTRY.items() <= _types(e) for e in files):
        raise CheckpointError(f"{path}: `files` is not a list of file, bytes and sha256: the manifest is damaged")
    for entry in files:
        if not re.fullmatch(r"[\w-][\w.-]*", entry["file"]):  # it must not lead out of its folder
            raise CheckpointError(f"{path}: '{entry['file']}' is not the name of a file beside it: refusing to follow it")
    return manifest


_ENTRY = {"file": str, "bytes": int, "sha256": str}


def _types(entry: dict[str, Any]) -> Any:
    return {key: type(value) for key, value in entry.items()}.items()


def _check_file(folder: Path, entry: dict[str, Any], verify: bool) -> None:
    path = folder / entry["file"]
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if path.stat().st_size != entry["bytes"]:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, {entry['bytes']} were written: truncated?")
    if verify and checksum(path) != entry["sha256"]:
        raise CheckpointError(f"{path}: checksum differs from the one at saving: damaged on disk")
