"""`ijepa-ds bench index`: open time, lookup time and memory of a large index with several readers."""

from __future__ import annotations

import argparse
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ijepa_ds.arguments import check_at_least
from ijepa_ds.config import DataConfig
from ijepa_ds.data.index import ImageIndex, build_index
from ijepa_ds.data.index_file import ENTRY, Container, Part
from ijepa_ds.data.samples import SamplePlan, Share

logger = logging.getLogger(__name__)
_NAME = b"n00000000/n00000000_00000000.JPEG"  # as long as the names of ImageNet-22k
_PER_CLASS = 640
_WAIT = "ready"


def run(args: argparse.Namespace) -> int:
    """Measure and print the figures; 0."""
    check_at_least(args, entries=1, readers=1, batch_size=1, batches=1)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "synthetic.index"
        synthetic(args.entries).save(path)
        figures = measure(path, args.readers, args.batch_size, args.batches)
        size = path.stat().st_size
    opened = [figure["open"] for figure in figures]
    looked = np.array([figure["lookups"] for figure in figures])  # [readers, batches]
    together = sum(figure["shared_once"] for figure in figures)
    logger.info(
        "%s entries, %.2f GB on disk; %d readers, each %d batches of %d\n"
        "open: %.3f s at most\n"
        "lookup of a batch (order, crop, entry, name), processor time: median %.2f ms, 99 %% below %.2f ms\n"
        "resident memory of the index, all readers together: %.0f MB with shared pages counted once, %.0f MB counted by each; "
        "%.0f MB of their own",
        *(f"{args.entries:,}", size / 1e9, args.readers, args.batches, args.batch_size),
        *(max(opened), 1e3 * np.median(looked), 1e3 * np.quantile(looked, 0.99)),
        *(together / 1e6, sum(figure["mapped"] for figure in figures) / 1e6, sum(figure["own"] for figure in figures) / 1e6),
    )
    return 0


def synthetic(count: int) -> ImageIndex:
    """An index of `count` synthetic images; there are no files."""
    entries = np.zeros(count, ENTRY)
    number = np.arange(count)
    names = np.tile(np.frombuffer(_NAME, np.uint8), (count, 1))
    for digit in range(8):
        names[:, len(_NAME) - 6 - digit] = ord("0") + number // 10**digit % 10
        for end in (8, 18):  # the class, twice
            names[:, end - digit] = ord("0") + number // _PER_CLASS // 10**digit % 10
    entries["name"] = number * len(_NAME)
    entries["name_length"] = len(_NAME)
    entries["num_bytes"] = 110_000
    entries["width"], entries["height"] = 300 + number % 400, 250 + number % 300
    entries["label"] = number // _PER_CLASS
    classes = tuple(f"n{label:08d}" for label in range((count - 1) // _PER_CLASS + 1))
    return build_index(
        source="synthetic",
        entries=entries,
        names=names.reshape(-1),
        containers=(Container("/nowhere"),),
        classes=classes,
        bad={},
        problems=(),
        parts=(Part("synthetic", count, None),),
    )


def measure(path: Path, readers: int, batch_size: int, batches: int) -> list[dict[str, Any]]:
    """Let processes read at the same time; what each saw while all were there."""
    command = [sys.executable, "-m", "ijepa_ds.bench.index", str(path), str(readers), str(batch_size), str(batches)]
    running = [
        subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for rank in range(readers)
    ]
    figures = []
    for signal in ("look", "memory"):  # all readers wait for each other after opening and after looking up
        for process in running:
            assert process.stdout and process.stdin
            if process.stdout.readline().strip() != _WAIT:
                raise RuntimeError("a reader process died; see its message above")
        for process in running:
            assert process.stdin
            process.stdin.write(f"{signal}\n")
            process.stdin.flush()
    for process in running:
        assert process.stdout
        figures.append(json.loads(process.stdout.readline()))
    for process in running:
        process.communicate("done\n")
    return figures


def _read(path: str, readers: int, batch_size: int, batches: int, rank: int) -> None:
    """What a reader does, as one rank of a run."""
    before = _own_memory()
    start = time.perf_counter()
    index = ImageIndex.open(Path(path))
    opened = time.perf_counter() - start
    print(_WAIT, flush=True)
    sys.stdin.readline()
    share = Share(rank=rank, world_size=readers, micro_batch=batch_size, accumulation=1)
    plan = SamplePlan(DataConfig(source=""), index, seed=0, share=share)
    lookups = []
    for micro in range(batches):
        start = time.thread_time()
        for position in plan.samples(micro).indices.tolist():
            index.name(position)
        lookups.append(time.thread_time() - start)
    print(_WAIT, flush=True)
    sys.stdin.readline()
    mapped, shared_once = _mapped(path)
    figures = {"open": opened, "lookups": lookups, "mapped": mapped, "shared_once": shared_once, "own": _own_memory() - before}
    print(json.dumps(figures), flush=True)
    sys.stdin.readline()


def _own_memory() -> int:
    match = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return 1024 * int(match[1]) if match else 0


def _mapped(path: str) -> tuple[int, int]:
    """Resident bytes of a mapped file in this process: all (Rss), and with shared pages divided among processes (Pss)."""
    resident = shared = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(path)
        elif inside and line.startswith(("Rss:", "Pss:")):
            amount = 1024 * int(line.split()[1])
            resident, shared = (resident + amount, shared) if line.startswith("Rss:") else (resident, shared + amount)
    return resident, shared


if __name__ == "__main__":
    _read(sys.argv[1], *map(int, sys.argv[2:]))
