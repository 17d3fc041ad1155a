"""Images a second from parquet and from tars of the same JPEGs, side by side.

    OMP_NUM_THREADS=1 python -m benchmarks.parquet --rows 100 1000

JPEGs of 400 x 320 pixels, crops of 224, one decoding thread. Sources are measured in turn, several rounds of each; printed are
the medians and their ratio to tars. With `--order shards`, the cache of row groups is `--cache` MiB, so that parquet files are
read again all the time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ijepa_ds import cli
from ijepa_ds.config import DataConfig
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source

BATCH, DISTINCT = 64, 48


def make(place: Path, images: int, rows: list[int]) -> dict[str, str]:
    """The same images as tars and as parquet: name -> source."""
    (place / "images").mkdir()
    for i in range(DISTINCT):
        coarse = np.random.default_rng(i).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((400, 320), Image.Resampling.BICUBIC)
        picture.save(place / "images" / f"{i:06d}.jpg", quality=90)
    for i in range(DISTINCT, images):
        (place / "images" / f"{i:06d}.jpg").write_bytes((place / "images" / f"{i % DISTINCT:06d}.jpg").read_bytes())
    sources = {"tar": str(place / "tar")}
    commands = [["--to", "tar", "--out", sources["tar"]]]
    for count in rows:
        sources[f"parquet, {count} rows"] = str(place / f"rows{count}")
        commands.append(["--to", "parquet", "--rows", str(count), "--out", str(place / f"rows{count}")])
    for command in commands:
        if cli.main(["data", "shard", str(place / "images"), "--size", "32M", *command]):
            sys.exit("the images could not be converted")
    return sources


def rate(cfg: DataConfig, seconds: float) -> tuple[float, float]:
    """Images a second, of the clock and of the processor, in steady state."""
    index = open_source(cfg.source, ScanOptions.of(cfg))
    sizes = {"batch_size": BATCH, "micro_batch": BATCH, "rank": 0, "world_size": 1, "accumulation": 1, "start_step": 0}
    stream = ImageBatches(cfg, index, seed=0, device="cpu", **sizes)
    try:
        for _ in range(3):
            next(stream)
        began, cpu, batches = time.monotonic(), time.process_time(), 0
        while time.monotonic() - began < seconds:
            next(stream)
            batches += 1
        return batches * BATCH / (time.monotonic() - began), batches * BATCH / (time.process_time() - cpu)
    finally:
        stream.close()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 1000], help="images of a row group")
    parser.add_argument("--order", choices=("global", "shards"), nargs="+", default=["global", "shards"])
    parser.add_argument("--window", type=int, default=2000, help="images, with --order shards")
    parser.add_argument("--cache", type=int, default=128, help="MiB of row groups, with --order shards")
    parser.add_argument("--loader", choices=("torchvision", "dali"), default="torchvision")
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        sources = make(Path(place), args.images, args.rows)
        for order in args.order:
            keys = {"order": "shards", "shuffle_window": args.window, "parquet_cache": args.cache} if order == "shards" else {}
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
            for _ in range(args.rounds):
                for name, source in sources.items():
                    cfg = DataConfig(source=source, crop_size=224, loader=args.loader, threads=1, **keys)
                    found[name].append(rate(cfg, args.seconds))
            tars = [statistics.median(part) for part in zip(*found["tar"], strict=True)]
            for name, rates in found.items():
                wall, cpu = (statistics.median(part) for part in zip(*rates, strict=True))
                print(
                    f"{order:7} {name:20} {wall:6.0f} images/s ({wall / tars[0]:.2f} of tars), "
                    f"{cpu:6.0f} a second of processor time ({cpu / tars[1]:.2f})",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
