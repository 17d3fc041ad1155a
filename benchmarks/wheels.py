"""Installs wheels from a folder, on machines without a network; large wheels may be split into parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def join_wheels(folder: Path, target: Path) -> Path:
    """Return a folder of whole wheels: `folder`, or `target` with wheels joined from `NAME.whl.part-00`, `-01`, ...

    Raises:
        ValueError: The folder has no wheels, or a part is missing.
    """
    pieces: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.whl.part-*")):
        pieces.setdefault(path.name.partition(".part-")[0], []).append(path)
    whole = list(folder.glob("*.whl"))
    if not pieces and not whole:
        raise ValueError(f"--wheels {folder}: expected files *.whl or *.whl.part-00, ... (docs/install.md)")
    if not pieces:
        return folder
    target.mkdir(parents=True, exist_ok=True)
    for name, paths in pieces.items():
        numbers = [int(path.name.rpartition("-")[2]) for path in paths]
        if numbers != list(range(len(numbers))):
            raise ValueError(f"--wheels {folder}: {name} has the parts {numbers}; expected 0 to {numbers[-1]}")
        with (target / name).open("wb") as file:
            for path in paths:
                file.write(path.read_bytes())
    for path in whole:
        (target / path.name).write_bytes(path.read_bytes())
    return target


def install(folder: Path, joined: Path) -> str:
    """Install every wheel of a folder without an index; what pip said if it failed.

    Args:
        folder: With wheels, whole or split.
        joined: Where split wheels are put together.
    """
    wheels = sorted(map(str, join_wheels(folder, joined).glob("*.whl")))
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", *wheels]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=120)
    return "" if done.returncode == 0 else f"pip: {done.stderr.strip()[-300:]}"
