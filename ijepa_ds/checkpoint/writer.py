"""Write checkpoints: one rank's file, and the commit that makes a set of files the newest checkpoint.

It uses neither other ranks nor DeepSpeed, so it can run on a thread. Every folder is always one of

    .step_N.partial-ID/      being written by an attempt; never read
    step_N/                  complete: all files and the manifest were flushed to the disk before the rename
    .step_N.removed          renamed before its files are deleted; never read
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ijepa_ds.checkpoint.folder import checksum, folder_name, list_steps, looks_whole, write_last_step
from ijepa_ds.durable import fsync, save_tensors
from ijepa_ds.errors import CheckpointError

logger = logging.getLogger(__name__)
BEST = "best.json"  # the step with the best live evaluation


def partial_folder(run_dir: Path, step: int, attempt: str) -> Path:
    """Where an attempt writes. The name is unique, so that ranks of a dead job cannot write into it."""
    return run_dir / "checkpoints" / f".{folder_name(step)}.partial-{attempt}"


def write_shard(path: Path, tensors: dict[str, Tensor], starts: dict[str, int]) -> dict[str, Any]:
    """Write one rank's file, flush it to the disk and read it back.

    Args:
        path: the file; its folder is created.
        tensors: key (`master/NAME`) -> float32 `[n]` in host memory.
        starts: key -> index of its first element in the flattened parameter.

    Returns:
        The file's entry for the manifest.

    Raises:
        CheckpointError: names the path, the bytes needed and the bytes free.
    """
    needed = sum(tensor.nbytes for tensor in tensors.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, path, {"starts": json.dumps(starts)})
        entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": checksum(path)}
        _prove(path, tensors, starts)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_reason(error)}; {needed:,} bytes are needed, {_free(path)}") from error
    return entry


def _prove(path: Path, tensors: dict[str, Tensor], starts: dict[str, int]) -> None:
    """Read the file back and compare it with the tensors and their places."""
    with safe_open(path, framework="pt") as file:
        if file.metadata() != {"starts": json.dumps(starts)}:
            raise OSError("its header differs when read back: is the disk or the memory failing?")
        for key, tensor in tensors.items():
            # compared as bits: a NaN equals itself
            if not torch.equal(file.get_tensor(key).view(torch.int32), tensor.view(torch.int32)):
                raise OSError(f"{key} differs when read back: is the disk or the memory failing?")


def commit(
    run_dir: Path,
    step: int,
    attempt: str,
    manifest: dict[str, Any],
    keep_last: int,
    keep_every: int,
    whole: set[int] | None = None,
) -> Path:
    """Make a written attempt the newest checkpoint, then delete older ones.

    Args:
        run_dir: the run.
        step: steps done.
        attempt: as given to `partial_folder`.
        manifest: with the entries of all files.
        keep_last: number of complete checkpoints kept, this one included.
        keep_every: checkpoints of steps that this divides are kept for good; 0: none.
        whole: steps whose checkpoint is known to be complete; this one is added.

    Raises:
        CheckpointError: a file is missing, or the disk fails; older checkpoints are unchanged.
    """
    aside, final = partial_folder(run_dir, step, attempt), run_dir / "checkpoints" / folder_name(step)
    try:
        for entry in manifest["files"]:
            path = aside / entry["file"]
            if _size(path) != entry["bytes"]:
                raise CheckpointError(
                    f"{path}: written by rank {entry['rank']} on {entry['host']}, but not visible here: run.dir must be on "
                    "a file system that all hosts share"
                )
        _write_synced(aside / "manifest.json", json.dumps(manifest, indent=1))
        fsync(aside)
        if final.exists():  # a broken one, which this run passed over
            _remove(final)
        aside.rename(final)
    except OSError as error:
        raise CheckpointError(f"{error.filename or aside}: {_reason(error)}; {_free(aside)}") from error
    try:
        fsync(final.parent)
        write_last_step(run_dir, step)
        fsync(run_dir)
        whole = set() if whole is None else whole
        whole.add(step)
        prune(run_dir, keep_last, keep_every, step, whole)
    except OSError as error:  # the checkpoint is complete: a failure here must not make it count as missing
        logger.warning(
            "the checkpoint of step %d is saved, but what follows failed (%s: %s); it is tried again after the next save",
            *(step, error.filename or final.parent, _reason(error)),
        )
    return final


def prune(
    run_dir: Path, keep_last: int, keep_every: int, newest: int | None = None, whole: set[int] | None = None
) -> list[int]:
    """Delete complete checkpoints beyond the newest `keep_last`, and broken ones older than those; returns their steps.

    Kept are multiples of `keep_every`, complete or not, and the step in `best.json`. Checkpoints of later steps than `newest`
    are kept and not counted: the run passed over them, because they are broken or of another configuration, which sizes do
    not show. Unfinished saves are not deleted here: see `sweep`.

    Of steps in `whole`, only the names of the files are looked at, not every size: they were complete before. Complete ones
    are added.
    """
    whole = set() if whole is None else whole
    parent, kept, gone = run_dir / "checkpoints", 0, []
    best = best_step(run_dir)
    for step in reversed(list_steps(run_dir)):
        if newest is not None and step > newest:
            continue
        if kept >= keep_last and not (keep_every and step % keep_every == 0) and step != best:
            _remove(parent / folder_name(step))
            whole.discard(step)
            gone.append(step)
        elif looks_whole(parent / folder_name(step), sizes=step not in whole):
            whole.add(step)
            kept += 1
    return gone


def best_step(run_dir: Path) -> int | None:
    """The step that the live evaluation (`eval.every`) marked as the best; None if there is none."""
    try:
        return int(json.loads((run_dir / BEST).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):  # a damaged file counts as none: it only keeps one checkpoint longer
        return None


def sweep(run_dir: Path, attempt: str = "") -> None:
    """Delete what interrupted saves and deletions left, except the folders of `attempt`."""
    parent = run_dir / "checkpoints"
    for path in parent.glob(".step_*") if parent.is_dir() else ():
        if not (attempt and path.name.endswith(f".partial-{attempt}")):
            shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    """Bytes of a file; -1 if there is none here."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _remove(folder: Path) -> None:
    """Rename the folder, then delete it: an interrupted deletion must not look like a damaged checkpoint."""
    away = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(away, ignore_errors=True)
    folder.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _free(path: Path) -> str:
    folder = path
    while not os.path.isdir(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        return f"{shutil.disk_usage(folder).free:,} are free in {folder}"
    except OSError as error:
        return f"{folder} cannot be examined ({error.strerror})"


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
