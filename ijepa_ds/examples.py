"""`ijepa-ds copy-examples DIR`: the shipped configurations, DeepSpeed files and launch scripts, with or without a checkout.

In a checkout they are its folders `configs`, `ds_configs` and `launch`. A wheel holds them in `ijepa_ds/shipped` (`setup.py`).
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from ijepa_ds.durable import replacing
from ijepa_ds.errors import UserError

_INSTALLED = Path(__file__).parent / "shipped"
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1]
FOLDERS = ("configs", "ds_configs", "launch")
_OF_CHECKOUT = ("install.sh", "test.sh", "test_floors.sh", "quickstart.sh")  # they install the checkout around them


def shipped(text: str) -> Path:
    """The file that `--config` or `--deepspeed_config` names.

    A relative name such as `configs/in1k_vith14.yaml` that is not in the current directory is the shipped file.
    """
    path = Path(text)
    ours = not path.is_absolute() and len(path.parts) == 2 and path.parts[0] in FOLDERS[:2]
    return ROOT / path if ours and not path.exists() and (ROOT / path).is_file() else path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="gets the folders configs, ds_configs and launch")


def run(args: argparse.Namespace) -> int:
    """Copy them. A file that is there with another content stays, and the command is refused.

    Raises:
        UserError: names every file that differs, or the folder that cannot be written.
    """
    wanted = {path.relative_to(ROOT): path for folder in FOLDERS for path in sorted((ROOT / folder).glob("[!_.]*"))}
    files = {name: path for name, path in wanted.items() if path.is_file() and path.name not in _OF_CHECKOUT}
    targets = {args.folder / name: path for name, path in files.items()}
    differing = [str(new) for new, old in targets.items() if new.exists() and new.read_bytes() != old.read_bytes()]
    if differing:
        raise UserError("these files differ from the shipped ones; choose another folder:\n  " + "\n  ".join(differing))
    for new, old in targets.items():
        try:
            new.parent.mkdir(parents=True, exist_ok=True)
            with replacing(new) as partial:
                shutil.copyfile(old, partial)
        except OSError as error:
            raise UserError(f"{new}: cannot be written: {error.strerror}") from error
        new.chmod(0o755 if os.access(old, os.X_OK) else 0o644)
    print(f"{len(files)} files in {', '.join(str(args.folder / name) for name in FOLDERS)}")
    return 0
