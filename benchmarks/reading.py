"""Images a second of the loaders when every open and every read of the storage takes a given time.

    OMP_NUM_THREADS=1 python -m benchmarks.reading --latency 1 10 50

Small images, so that waiting and not decoding is measured; many tars, so that most reads open one. Other revisions: run this
file with PYTHONPATH set to them.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tarfile
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ijepa_ds.config import DataConfig
from ijepa_ds.data import reading
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.sources import open_source

TARS, A_TAR, BATCH = 300, 8, 64


def make(place: Path) -> str:
    """Tars with small images; the pattern that names them."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file := io.BytesIO(), "JPEG")
    for tar_number in range(TARS):
        with tarfile.open(place / f"{tar_number:04d}.tar", "w") as tar:
            for number in range(A_TAR):
                info = tarfile.TarInfo(f"{tar_number}-{number}.jpg")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))
    return str(place / "*.tar")


def rate(source: str, index: Any, loader: str, seconds: float, readers: int) -> float:
    """Images a second in steady state."""
    keys = {"readers": readers} if "readers" in {field.name for field in fields(DataConfig)} else {}
    cfg = DataConfig(source=source, crop_size=32, loader=loader, threads=2, **keys)
    sizes = {"batch_size": BATCH, "micro_batch": BATCH, "rank": 0, "world_size": 1, "accumulation": 1, "start_step": 0}
    stream = ImageBatches(cfg, index, seed=0, device="cpu", **sizes)
    try:
        for _ in range(3):
            next(stream)
        began, batches = time.monotonic(), 0
        while time.monotonic() - began < seconds:
            next(stream)
            batches += 1
        return batches * BATCH / (time.monotonic() - began)
    finally:
        stream.close()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--latency", type=float, nargs="+", default=[1, 10, 50], help="milliseconds of an open and of a read")
    parser.add_argument("--readers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        source = make(Path(place))
        index = open_source(source)
        opened, read = os.open, reading.read_range
        for latency in args.latency:

            def slow_open(path: Any, *rest: Any, pause: float = latency / 1000, **keys: Any) -> int:
                time.sleep(pause if str(path).endswith(".tar") else 0)
                return opened(path, *rest, **keys)

            def slow_read(*arguments: Any, pause: float = latency / 1000) -> bytes:
                time.sleep(pause)
                return read(*arguments)

            os.open, reading.read_range = slow_open, slow_read  # type: ignore[assignment]
            for loader in ("torchvision", "dali"):
                found = rate(source, index, loader, args.seconds, args.readers)
                print(f"{latency:g} ms, {loader}: {found:.0f} images/s", flush=True)
            os.open, reading.read_range = opened, read
    return 0


if __name__ == "__main__":
    sys.exit(main())
