"""Checkpoints that survive: one folder a step, one safetensors file a rank, a checked manifest, one rename.

    RUN/checkpoints/step_00001000/
        shard_00000_of_00002.safetensors   this rank's pieces: master/NAME, exp_avg/NAME, exp_avg_sq/NAME, ema/NAME
        manifest.json                      step, config, versions, and every file's size and checksum

Pieces are parts of flattened parameters with their offsets, so that a run saved by any number of ranks at any ZeRO stage
is read back by any other. Nothing random is saved: data order, crops and masks are functions of the step.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed import comm as dist
from safetensors import SafetensorError
from safetensors.torch import save_file

from ijepa_ds.checkpoint_reader import (
    CheckpointError,
    CheckpointReader,
    checksum,
    folder_name,
    list_steps,
    write_last_step,
)
from ijepa_ds.engine import Engine, gather_objects
from ijepa_ds.zero_layout import Piece

logger = logging.getLogger(__name__)


def save(engine: Engine, run_dir: Path, step: int, facts: dict[str, Any], keep_last: int) -> Path:
    """Write the state after `step` optimizer steps; every rank calls it and writes only its own share.

    Args:
        engine: what to save.
        run_dir: the run.
        step: steps done.
        facts: JSON-able things a reader wants (config, fingerprint, versions, samples seen, bad samples).
        keep_last: older checkpoints beyond this many go, after the new one is in place.

    Returns:
        The checkpoint's folder.
    """
    parent = run_dir / "checkpoints"
    final = parent / folder_name(step)
    aside = parent / f".{folder_name(step)}.partial"
    rank, world_size = dist.get_rank(), dist.get_world_size()
    _on_rank_zero(lambda: _make_empty(aside), step)
    path = aside / f"shard_{rank:05d}_of_{world_size:05d}.safetensors"
    problem, entry = None, None
    try:
        tensors, starts = _collect(engine)
        save_file(tensors, path, metadata={"starts": json.dumps(starts)})
        _fsync(path)
        entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": checksum(path)}
    except (OSError, SafetensorError) as error:
        problem = f"rank {rank} on {socket.gethostname()} could not write {path}: {error}"
    results = gather_objects((problem, entry))
    problems = [text for text, _ in results if text]
    if problems:
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"checkpoint of step {step} not saved; older ones are untouched: " + "; ".join(problems))
    manifest = {
        "format": 1,
        "step": step,
        "world_size": world_size,
        "zero_stage": engine.stage,
        "adam_step": _adam_step(engine),
        **facts,
        "files": [entry for _, entry in results],
    }
    _on_rank_zero(lambda: _finish(run_dir, aside, final, manifest, keep_last), step)
    return final


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _finish(run_dir: Path, aside: Path, final: Path, manifest: dict[str, Any], keep_last: int) -> None:
    """Make a written checkpoint the current one; then, and only then, let older ones go."""
    step, parent = manifest["step"], final.parent
    _write_synced(aside / "manifest.json", json.dumps(manifest, indent=1))
    _fsync(aside)
    replaced = parent / f".{final.name}.replaced"
    if final.exists():  # saved again after a fallback to an older one: keep it until the new one stands
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    aside.rename(final)
    _fsync(parent)
    shutil.rmtree(replaced, ignore_errors=True)
    write_last_step(run_dir, step)
    older = [other for other in list_steps(run_dir) if other < step]
    for old in older[: max(0, len(older) - (keep_last - 1))]:
        shutil.rmtree(parent / folder_name(old), ignore_errors=True)


def _on_rank_zero(action: Callable[[], None], step: int) -> None:
    """Run `action` on rank 0 and wait; when it fails there, every rank raises the same error."""
    problem = None
    if dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            problem = f"rank 0 on {socket.gethostname()}: {error}"
    problem = gather_objects(problem)[0]
    if problem:
        raise CheckpointError(f"checkpoint of step {step} not saved; older ones are untouched: {problem}")


def load(engine: Engine, reader: CheckpointReader) -> None:
    """Bring the engine to a checkpoint's state: master weights, Adam, EMA, and the weights that follow from them."""
    layout, adam_step = engine.layout, reader.manifest["adam_step"]
    for name, parameter in layout.named.items():
        wanted, found = getattr(parameter, "ds_numel", parameter.numel()), reader.numel(f"master/{name}")
        if wanted != found:
            raise CheckpointError(f"{reader.folder}: {name} has {found} elements, this model's has {wanted}")
    with torch.no_grad():
        moments = [{k: torch.zeros_like(layout.master(s)) for k in _MOMENTS} for s in range(layout.num_slots)]
        for piece in layout.pieces:
            layout.view(layout.master(piece.slot), piece).copy_(reader.read("master", piece.name, piece))
            for key in _MOMENTS if adam_step else ():
                layout.view(moments[piece.slot][key], piece).copy_(reader.read(key, piece.name, piece))
        if adam_step:
            for slot, values in enumerate(moments):
                layout.set_moments(slot, values["exp_avg"], values["exp_avg_sq"], adam_step)
        layout.publish_masters()
        for piece in engine.ema.pieces:
            buffer = engine.ema.layout.view(engine.ema.average[piece.slot], piece)
            buffer.copy_(reader.read("ema", "encoder." + piece.name, piece))
        engine.ema.publish()


_MOMENTS = ("exp_avg", "exp_avg_sq")


def _collect(engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """This rank's pieces, copied to host memory, and where each starts in its flattened parameter."""
    tensors, starts = {}, {}

    def add(kind: str, name: str, piece: Piece, buffer: torch.Tensor, view: Any) -> None:
        key = f"{kind}/{name}"
        tensors[key] = view(buffer, piece).detach().to("cpu", copy=True)
        starts[key] = piece.start

    for index, piece in enumerate(engine.layout.pieces):
        if _mine(engine, index) and piece.numel:
            add("master", piece.name, piece, engine.layout.master(piece.slot), engine.layout.view)
            moments = engine.layout.moments(piece.slot)
            for key in _MOMENTS if moments else ():
                add(key, piece.name, piece, moments[key], engine.layout.view)
    for index, piece in enumerate(engine.ema.pieces):
        if _mine(engine, index) and piece.numel:
            add("ema", "encoder." + piece.name, piece, engine.ema.average[piece.slot], engine.ema.layout.view)
    return tensors, starts


def _mine(engine: Engine, index: int) -> bool:
    """Whether this rank writes a piece: its own under ZeRO; where all ranks hold everything, they share the work."""
    return not engine.layout.replicated or index % dist.get_world_size() == dist.get_rank()


def _adam_step(engine: Engine) -> int:
    moments = engine.layout.moments(0)
    return int(moments["step"]) if moments else 0


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
