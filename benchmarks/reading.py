"""Images a second of the loaders when every open and every read of the storage takes a given time.

    OMP_NUM_THREADS=1 python -m benchmarks.reading --latency 1 10 50
    OMP_NUM_THREADS=1 python -m benchmarks.reading --latency 10 --order global shards --tars 600 --images 32 --open-files 512

Small images, so that waiting and not decoding is measured; many tars, so that most reads open one. Other revisions: run this
file with PYTHONPATH set to them. `--open-files` limits the process: the loader keeps a quarter of them, and at least 128 tars,
open. Printed with each rate: how many tars are opened, and how many reads are in another tar than the read before, a read.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import resource
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

BATCH = 64


def make(place: Path, tars: int, images: int) -> str:
    """Tars with small images; the pattern that names them."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(file := io.BytesIO(), "JPEG")
    for tar_number in range(tars):
        with tarfile.open(place / f"{tar_number:04d}.tar", "w") as tar:
            for number in range(images):
                info = tarfile.TarInfo(f"{tar_number}-{number}.jpg")
                info.size = len(file.getvalue())
                tar.addfile(info, io.BytesIO(file.getvalue()))
    return str(place / "*.tar")


class Counted:
    """Opens and reads of the tars since `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Count from now on."""
        self.opens = self.reads = self.elsewhere = 0
        self._last = -1

    def read(self, descriptor: int) -> None:
        """Count a read of an open tar."""
        self.reads += 1
        self.elsewhere += descriptor != self._last
        self._last = descriptor


def rate(source: str, index: Any, loader: str, seconds: float, wanted: dict[str, Any], counted: Counted) -> float:
    """Images a second in steady state; `wanted` are keys of the configuration, as far as the revision has them."""
    keys = {name: value for name, value in wanted.items() if name in {field.name for field in fields(DataConfig)}}
    cfg = DataConfig(source=source, crop_size=32, loader=loader, threads=2, **keys)
    sizes = {"batch_size": BATCH, "micro_batch": BATCH, "rank": 0, "world_size": 1, "accumulation": 1, "start_step": 0}
    stream = ImageBatches(cfg, index, seed=0, device="cpu", **sizes)
    try:
        for _ in range(3):
            next(stream)
        began, batches = time.monotonic(), 0
        counted.reset()
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
    parser.add_argument("--order", choices=("global", "shards"), nargs="+", default=["global"])
    parser.add_argument("--window", type=int, default=512, help="images, with --order shards")
    parser.add_argument("--loader", choices=("torchvision", "dali"), nargs="+", default=["torchvision", "dali"])
    parser.add_argument("--tars", type=int, default=300)
    parser.add_argument("--images", type=int, default=8, help="of a tar")
    parser.add_argument("--open-files", type=int, help="limit of the process")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    args = parser.parse_args()
    if args.open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (args.open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    counted = Counted()
    with tempfile.TemporaryDirectory() as place:
        source = make(Path(place), args.tars, args.images)
        index = open_source(source)
        opened, read = os.open, reading.read_range
        for latency in args.latency:

            def slow_open(path: Any, *rest: Any, pause: float = latency / 1000, **keys: Any) -> int:
                if str(path).endswith(".tar"):
                    counted.opens += 1
                    time.sleep(pause)
                return opened(path, *rest, **keys)

            def slow_read(descriptor: int, *rest: Any, pause: float = latency / 1000) -> bytes:
                counted.read(descriptor)
                time.sleep(pause)
                return read(descriptor, *rest)

            os.open, reading.read_range = slow_open, slow_read  # type: ignore[assignment]
            for loader, order in itertools.product(args.loader, args.order):
                wanted = {"readers": args.readers, "order": order}
                wanted |= {"shuffle_window": args.window} if order == "shards" else {}
                found = rate(source, index, loader, args.seconds, wanted, counted)
                opens, elsewhere = counted.opens / counted.reads, counted.elsewhere / counted.reads
                print(
                    f"{latency:g} ms, {loader}, {order}: {found:.0f} images/s; a read: {opens:.2f} opens, "
                    f"{elsewhere:.2f} times another tar",
                    flush=True,
                )
            os.open, reading.read_range = opened, read
    return 0


if __name__ == "__main__":
    sys.exit(main())
