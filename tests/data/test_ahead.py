"""Reads wait for the storage side by side: opens outside the lock, and `data.readers` reads at once on every loader."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ijepa_ds.config import DataConfig
from ijepa_ds.data import reading
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.reading import Reader
from ijepa_ds.data.sources import open_source
from tests.data.test_sources import encoded, tar_of
from tests.waiting import limit


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for shard in range(8):
        tar_of(tmp_path / f"{shard}.tar", {f"{shard}-{i}.png": encoded(shard, "PNG") for i in range(8)})
    return str(tmp_path / "*.tar")


def test_threads_open_different_tars_at_once_and_one_tar_once(shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, opened, real = Reader(open_source(shards)), [], os.open
    together = threading.Barrier(8)  # passes only when eight threads are in an open at once

    def slow(path: object, *rest: int) -> int:
        opened.append(path)
        together.wait(limit(20))
        return real(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(reading.os, "open", slow)
    with ThreadPoolExecutor(64) as pool:
        contents = list(pool.map(reader.read, range(64)))
    assert len(opened) == 8 == len(set(opened))
    assert contents[9] == encoded(1, "PNG")


@pytest.mark.parametrize("loader", ["torchvision", "dali"])
def test_readers_are_at_work_at_once_across_micro_batches(loader: str, shards: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    index, readers = open_source(shards), 24

    def batches(**keys: object) -> torch.Tensor:
        cfg = DataConfig(source=shards, crop_size=16, loader=loader, prefetch=1, **keys)  # type: ignore[arg-type]
        sizes = {"batch_size": 4, "micro_batch": 4, "rank": 0, "world_size": 1, "accumulation": 1, "start_step": 0}
        stream = ImageBatches(cfg, index, seed=0, device="cpu", **sizes)
        try:
            return torch.stack([next(stream) for _ in range(10)])
        finally:
            stream.close()

    alone = batches(readers=1)
    now, most, lock, real = [0], [0], threading.Lock(), reading.read_range

    def slow(*arguments: int) -> bytes:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return real(*arguments)

    monkeypatch.setattr(reading, "read_range", slow)
    assert torch.equal(batches(readers=readers), alone)  # reading ahead changes no pixel
    assert readers / 2 < most[0] <= readers
