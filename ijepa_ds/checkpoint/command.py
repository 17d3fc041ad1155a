"""`ijepa-ds checkpoint list|verify|prune RUN`: list the checkpoints of a run, verify them, delete old ones."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import yaml

from ijepa_ds.arguments import check_at_least
from ijepa_ds.checkpoint import run_lock
from ijepa_ds.checkpoint.folder import check_files, find_steps, folder_name
from ijepa_ds.checkpoint.reader import CheckpointReader
from ijepa_ds.checkpoint.writer import prune, sweep
from ijepa_ds.errors import CheckpointError, UserError


def run(arguments: argparse.Namespace) -> int:
    """0 if all checkpoints are good, 1 if one is broken.

    Raises:
        ValueError: there is no such run, or another process trains in it (prune).
    """
    if not (arguments.run / "checkpoints").is_dir():
        raise UserError(f"{arguments.run} has no folder checkpoints: is it a run directory (run.dir)?")
    if arguments.action == "prune":
        return _prune(arguments)
    rows = [_describe(arguments.run, step, verify=arguments.action == "verify") for step in find_steps(arguments.run)]
    if arguments.json:
        for row in rows:
            print(json.dumps(row))
    else:
        _print(arguments.run, rows, arguments.action == "verify")
    return int(any(row["problem"] for row in rows))


def _describe(run: Path, step: int, verify: bool) -> dict[str, Any]:
    folder = run / "checkpoints" / folder_name(step)
    row: dict[str, Any] = {"step": step, "folder": str(folder), "problem": None}
    try:
        manifest = check_files(folder, (0, 1) if verify else (0, 0))
        if verify:
            reader = CheckpointReader(folder, verify=False)
            for kind in ("master", "exp_avg", "exp_avg_sq", "ema"):
                for name in reader.names(kind):
                    reader.numel(f"{kind}/{name}")  # no gap, no overlap
    except CheckpointError as error:
        return row | {"problem": str(error)}
    model = _model(manifest.get("config"))
    return row | {
        "saved": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((folder / "manifest.json").stat().st_mtime)),
        "bytes": sum(entry["bytes"] for entry in manifest["files"]),
        "files": len(manifest["files"]),
        "world_size": manifest.get("world_size"),
        "zero_stage": manifest.get("zero_stage"),
        "samples_seen": manifest.get("samples_seen"),
        "bad_samples": len(manifest.get("bad_samples", [])),
        "model": f"{model.get('name', '?')}/{model.get('patch_size', '?')}",
        "fingerprint": manifest.get("fingerprint"),
    }


def _model(text: Any) -> dict[str, Any]:
    """The section `model` of a configuration; empty if it cannot be read."""
    try:
        model = yaml.safe_load(text)["model"]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return {}
    return model if isinstance(model, dict) else {}


def _print(run: Path, rows: list[dict[str, Any]], verified: bool) -> None:
    if not rows:
        print(f"{run} has no checkpoints yet")
        return
    print(f"{'step':>10}  {'saved':19}  {'MB':>9}  {'saved by':15}  {'samples':>12}  {'model':12}  {'configuration':16}  state")
    for row in rows:
        if row["problem"]:
            print(f"{row['step']:>10}  BROKEN: {row['problem']}")
            continue
        by = f"{row['world_size']} ranks, ZeRO-{row['zero_stage']}"
        state = "whole: checksums match" if verified else "complete (sizes)"
        print(
            f"{row['step']:>10}  {row['saved']:19}  {row['bytes'] / 1e6:9,.1f}  {by:15}  {row['samples_seen'] or 0:12,}  "
            f"{row['model']:12}  {row['fingerprint'] or '?':16}  {state}"
        )


def _prune(arguments: argparse.Namespace) -> int:
    check_at_least(arguments, keep_last=1, keep_every=0)
    with run_lock.lock(arguments.run):
        newest = find_steps(arguments.run)[-1:]
        problem = _describe(arguments.run, newest[0], verify=True)["problem"] if newest else None
        if problem:
            raise UserError(f"the newest checkpoint is broken, so older ones are not deleted: {problem}")
        sweep(arguments.run)
        gone = prune(arguments.run, arguments.keep_last, arguments.keep_every)
    print(f"deleted {len(gone)} checkpoints{': steps ' + ', '.join(map(str, sorted(gone))) if gone else ''}")
    return 0
