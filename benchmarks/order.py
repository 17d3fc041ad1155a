"""How far the order of the images is from a uniform shuffle: what the batches of an epoch have in common.

    python -m benchmarks.order --window 4096 16384 65536

Drawn are batches of an epoch of `data.order=global` and of `data.order=shards`. Nothing is read. Printed are, for one batch:
the different shards, the share of its pairs of images from one shard, and the different classes when the images lie in the
shards class by class (as in shards of a folder of classes) or without order.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

from ijepa_ds.data.order import sample_indices
from ijepa_ds.data.shard_order import ShardOrder


def of_a_batch(drawn: np.ndarray, shards: np.ndarray, classes: np.ndarray) -> list[float]:
    """Shards, share of pairs from one shard, and classes by shard and without order, of a batch `drawn`, int64 [n]."""
    _, counts = np.unique(shards[drawn], return_counts=True)
    pairs = (counts * (counts - 1)).sum() / (len(drawn) * (len(drawn) - 1))
    mixed = sample_indices(drawn, len(classes), 99)  # a fixed permutation: the place of an image says nothing of its class
    return [len(counts), pairs, len(np.unique(classes[drawn])), len(np.unique(classes[mixed]))]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--window", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--images", type=int, default=1_281_167)
    parser.add_argument("--shard", type=int, default=4700, help="images of a shard")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--batches", type=int, default=40, help="of an epoch, evenly spread")
    args = parser.parse_args()
    everything = np.arange(args.images)
    shards, classes = everything // args.shard, everything * args.classes // args.images
    sizes = np.bincount(shards)
    firsts = np.linspace(0, args.images - args.batch, args.batches).astype(int)
    print(f"{args.images:,} images in {len(sizes)} shards; a batch of {args.batch:,}, mean of {args.batches}")
    print("| order | shards | pairs of one shard | classes, sorted shards | classes, mixed shards |\n|---|---|---|---|---|")
    for window in (0, *args.window):
        order = ShardOrder(sizes, window) if window else None
        found = []
        for first in firsts.tolist():
            numbers = np.arange(first, first + args.batch)
            drawn = order.indices(numbers, 0) if order else sample_indices(numbers, args.images, 0)
            found.append(of_a_batch(drawn, shards, classes))
        number, pairs, by_shard, mixed = np.mean(found, axis=0)
        name = f"shards, window {window:,}" if window else "global"
        print(f"| {name} | {number:.1f} | {pairs:.2%} | {by_shard:.1f} | {mixed:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
