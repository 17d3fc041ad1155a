"""Versions of what computes. Imports none of it."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import ijepa_ds

_LIBRARIES = ("torch", "deepspeed", "timm", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "torchvision", "numpy")


def versions() -> dict[str, Any]:
    """Versions of what computes, and our git revision where there is one."""
    found: dict[str, Any] = {"ijepa_ds": ijepa_ds.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["git_revision"] = _revision()
    return found


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # not a checkout, or no git: an installed wheel
        return None
