"""The options of `ijepa-ds init`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare all options."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="gets config.yaml and deepspeed.json")
    parser.add_argument("--data", required=True, metavar="IMAGES", help="folder, list, tar shards, parquet, index or mix")
    parser.add_argument("--gpus", type=int, help="GPUs of the run, all hosts together (default: those of this machine)")
    parser.add_argument("--workers", type=int, default=2, help="processes that look at images (default 2)")
