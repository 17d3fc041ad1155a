"""Versions of the installed libraries, read without importing them."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import ijepa_ds
from ijepa_ds.errors import UserError

SUPPORTED_DEEPSPEED = "0.19."  # the release series whose attributes `zero` reads; they are not API
_LIBRARIES = ("torch", "deepspeed", "timm", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "torchvision", "numpy")


def versions() -> dict[str, Any]:
    """Return the versions of this package, Python and the main libraries, and the git revision or None."""
    found: dict[str, Any] = {"ijepa_ds": ijepa_ds.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["git_revision"] = _revision()
    return found


def _revision() -> str | None:
    """Revision of the checkout that this file belongs to; None for an installed package, also inside another repository."""
    folder = Path(__file__).parent
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        if Path(top) != folder.parent.resolve():  # a wheel in the environment of another project
            return None
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):  # not a git checkout, or git is not installed
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def check_deepspeed() -> None:
    """Check that the installed DeepSpeed has the internals that `zero` uses.

    Raises:
        UserError: The version is not supported; the text names it and the required one.
    """
    found = metadata.version("deepspeed")
    if not found.startswith(SUPPORTED_DEEPSPEED):
        raise UserError(
            f"deepspeed {found} is installed; ijepa_ds reads internals of {SUPPORTED_DEEPSPEED}x only. "
            f"Install it with: pip install 'deepspeed~={SUPPORTED_DEEPSPEED}8'"
        )
