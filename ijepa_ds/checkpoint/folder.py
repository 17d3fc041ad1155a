"""The checkpoint folders of a run: list them, and compare their files with the manifest. Needs no PyTorch."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ijepa_ds.errors import CheckpointError, StorageError, is_fault

_LAST = "last_checkpoint.json"


def folder_name(step: int) -> str:
    """Name of the checkpoint folder of `step`."""
    return f"step_{step:08d}"


def list_steps(run_dir: Path) -> list[int]:
    """Steps that have a committed checkpoint folder in a run, ascending; not validated."""
    parent = run_dir / "checkpoints"
    found = (re.fullmatch(r"step_(\d{8,})", p.name) for p in parent.iterdir()) if parent.is_dir() else ()
    return sorted(int(match[1]) for match in found if match)


def write_last_step(run_dir: Path, step: int) -> None:
    """Record the newest checkpoint, so that a later start notices if it is missing."""
    aside = run_dir / f".{_LAST}.partial"
    with aside.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"step": step}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(run_dir / _LAST)


def read_last_step(run_dir: Path) -> int | None:
    """The step of the newest checkpoint that a run saved; None if it saved none.

    Raises:
        CheckpointError: the record is damaged.
    """
    path = run_dir / _LAST
    if not path.is_file():
        return None
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove it if the checkpoints beside it are complete") from error


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def looks_whole(folder: Path, sizes: bool = True) -> bool:
    """Whether a checkpoint's manifest and file sizes are right; without `sizes` only the names, which one listing tells."""
    try:
        if sizes:
            check_files(folder, share=(0, 0))
            return True
        return {entry["file"] for entry in read_manifest(folder)["files"]} <= set(os.listdir(folder))
    except CheckpointError:
        return False


def newest_whole(run_dir: Path) -> int:
    """Step of the newest checkpoint that `looks_whole`; 0 if there is none."""
    folder = run_dir / "checkpoints"
    return next((step for step in reversed(list_steps(run_dir)) if looks_whole(folder / folder_name(step))), 0)


def check_files(
    folder: Path,
    share: tuple[int, int] = (0, 1),
    beat: Callable[[], None] = lambda: None,
    manifest: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare a checkpoint's files with its manifest: names, sizes and checksums.

    Args:
        folder: `RUN/checkpoints/step_...`.
        share: (rank, ranks): this rank compares every `ranks`-th file from number `rank` on, and at least one; `(0, 1)`: all;
            `(0, 0)`: names and sizes of all, and no checksum.
        beat: called after every file.
        manifest: what `read_manifest` returned; read here if None.

    Returns:
        The manifest.

    Raises:
        CheckpointError: a file is missing, or its size or checksum differs, or the folder is not a checkpoint.
    """
    manifest, (first, every) = manifest or read_manifest(folder), share
    files = manifest["files"]
    for entry in files[first :: every or 1]:
        _check_file(folder, entry, verify=bool(every))
        beat()
    if first >= len(files):  # more ranks than files: this host must see the folder, too
        _check_file(folder, files[first % len(files)], verify=False)
    return manifest


def find_steps(run_dir: Path) -> list[int]:
    """Steps that should have a checkpoint, ascending: those with a folder, and the newest one saved even if it is missing."""
    steps, last = list_steps(run_dir), read_last_step(run_dir)
    return steps if last is None else sorted({*steps, last})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; its files are not looked at.

    Raises:
        CheckpointError: it is missing or damaged.
        StorageError: it cannot be read now.
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such checkpoint folder")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _error_of(path, error, f"{error.strerror}; not a finished checkpoint") from error
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
        if not re.fullmatch(r"[\w-][\w.-]*", entry["file"]):  # no path that leads out of the folder
            raise CheckpointError(f"{path}: '{entry['file']}' is not the name of a file in this folder: refusing to open it")
    return manifest


_ENTRY = {"file": str, "bytes": int, "sha256": str}


def _types(entry: dict[str, Any]) -> Any:
    return {key: type(value) for key, value in entry.items()}.items()


def _error_of(path: Path, error: OSError, otherwise: str) -> StorageError | CheckpointError:
    """What an error of reading a checkpoint means: a fault that may pass, or damage."""
    if is_fault(error):
        return StorageError(f"{path}: {error.strerror}: a fault of its storage; run the same command again")
    return CheckpointError(f"{path}: {otherwise}")


def _check_file(folder: Path, entry: dict[str, Any], verify: bool) -> None:
    path = folder / entry["file"]
    try:
        status = path.stat()
    except OSError as error:
        raise _error_of(path, error, "missing") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: missing")
    if status.st_size != entry["bytes"]:
        raise CheckpointError(f"{path}: has {status.st_size} bytes, {entry['bytes']} were written: truncated?")
    if verify and checksum(path) != entry["sha256"]:
        raise CheckpointError(f"{path}: checksum differs from the one at saving: damaged on disk")
