"""`ijepa-ds bench eval`: throughput of feature extraction with and without reading images, and time of a linear sweep."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import torch

from ijepa_ds.arguments import check_at_least, device_of
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.evals import sweep
from ijepa_ds.evals.features import extract
from ijepa_ds.evals.folders import batches
from ijepa_ds.evals.settings import PRECISIONS, Settings
from ijepa_ds.evals.subject import Subject, open_subject
from ijepa_ds.terminal import track
from ijepa_ds.weights.facts import scan_options


def run(args: argparse.Namespace) -> int:
    """Measure and print the figures; 0."""
    check_at_least(args, num=1, repeats=1, batch_size=1, threads=1, features=0, classes=2)
    subject = open_subject(args.checkpoint, None, None, None)
    device = str(device_of(args.device))
    options = scan_options(subject.facts.config)
    index = open_source(args.images, options)
    found = ImageFiles(index, index.readable())
    paths: list[str] = [found[i % len(found)] for i in range(args.num)]
    forward, whole = compare(subject, paths, args, device, options)
    share = median(one / both for one, both in zip(forward, whole, strict=True))
    print(f"{subject.model}, images of {subject.facts.image_size} pixels, {device}, {args.precision}")
    print(f"forward pass alone     {args.num / median(forward):10.1f} images a second")
    print(f"features of images     {args.num / median(whole):10.1f} images a second, {100 * share:.1f} % of it")
    if args.features:
        heads, seconds, busy = time_sweep(subject.facts.size.width, args.features, args.classes, device)
        what = f"sweep of {heads} heads on {args.features:,} features, {args.classes} classes"
        print(f"{what}: {seconds:.1f} s, {busy:.1f} CPU seconds")
    return 0


def compare(
    subject: Subject, paths: list[str], args: argparse.Namespace, device: str, options: ScanOptions
) -> tuple[list[float], list[float]]:
    """Seconds of the forward pass on images in memory, and with reading them; interleaved, `args.repeats` of each."""
    facts, settings = subject.facts, Settings(size=subject.facts.image_size, mean=subject.facts.mean, std=subject.facts.std)
    dtype = PRECISIONS[args.precision]

    def read() -> Iterator[np.ndarray]:
        return batches(paths, settings.size, args.batch_size, args.threads, options.max_pixels, values=options.values)

    kept = list(read())

    def timed(images: Callable[[], Iterator[np.ndarray]]) -> float:
        start = time.perf_counter()
        extract(subject.encoder, images(), facts.mean, facts.std, device, dtype)
        return time.perf_counter() - start

    extract(subject.encoder, kept[:1], facts.mean, facts.std, device, dtype)  # warm-up
    forward, whole = [], []
    for _ in track(range(args.repeats), "features", "repeats"):
        forward.append(timed(lambda: iter(kept)))
        whole.append(timed(read))
    return forward, whole


def time_sweep(width: int, features: int, classes: int, device: str) -> tuple[int, float, float]:
    """Number of heads, wall seconds and CPU seconds of the default linear sweep on random features of four layers."""
    rng = torch.Generator().manual_seed(0)
    x, labels = torch.randn(features, 4 * width, generator=rng), torch.randint(0, classes, (features,), generator=rng)
    recipe = sweep.Recipe()
    start, busy = time.perf_counter(), time.process_time()
    sweep.train(lambda _: x, labels, width, recipe, device=device, progress="sweep")
    return len(sweep.all_heads(recipe)), time.perf_counter() - start, time.process_time() - busy
