"""`ijepa-ds bench data`: compare our loader, a torchvision/Pillow DataLoader and decoding alone on the same crops."""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ijepa_ds.arguments import check_at_least, device_of
from ijepa_ds.config import DataConfig
from ijepa_ds.data.image_header import FORMATS
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.loader import ImageBatches
from ijepa_ds.data.samples import SamplePlan, Share
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import normalize
from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)
_WARM_UP = 2  # batches that are not counted while pipelines fill


@dataclass(frozen=True)
class Cost:
    """Cost per image: wall seconds, and processor seconds of all cores."""

    wall: float
    cpu: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Input of every row: `batches` batches of the run's first samples, counted after the warm-up."""

    cfg: DataConfig
    index: ImageIndex
    batch_size: int
    batches: int
    device: torch.device
    dtype: torch.dtype

    @property
    def total(self) -> int:
        """Number of batches with the warm-up."""
        return _WARM_UP + self.batches

    def plan(self) -> SamplePlan:
        """Order and crops of the samples."""
        share = Share(rank=0, world_size=1, micro_batch=self.batch_size, accumulation=1)
        return SamplePlan(self.cfg, self.index, seed=0, share=share)


def run(args: argparse.Namespace) -> int:
    """Measure and print; return exit code 0."""
    check_at_least(args, threads=1, batch_size=1, batches=1, repeats=1)
    index = open_source(args.source, ScanOptions(progress=True))
    setting = Setting(
        cfg=DataConfig(source=args.source, crop_size=args.crop_size, threads=args.threads, decoder=args.decoder),
        index=index,
        batch_size=args.batch_size,
        batches=args.batches,
        device=device_of(args.device),
        dtype=getattr(torch, args.precision),
    )
    logger.info("%s", table(setting, measure(setting, args.repeats)))
    return 0


def measure(setting: Setting, repeats: int) -> dict[str, list[Cost]]:
    """Costs by row; rows alternate, so that other load on the machine affects all of them."""
    pillow = _PillowRow(setting)  # before threads exist: it forks processes
    rows: dict[str, Callable[[], Cost]] = {
        "torchvision/Pillow DataLoader": pillow,
        "ijepa_ds": lambda: _ours(setting),
    }
    if ImageBatches.decodes_with_dali(setting.cfg):
        rows["decode only"] = lambda: _decode_only(setting)
    costs: dict[str, list[Cost]] = {name: [] for name in rows}
    for _ in range(repeats):
        for name, row in rows.items():
            costs[name].append(row())
    return costs


def table(setting: Setting, costs: dict[str, list[Cost]]) -> str:
    """A text table of medians and ratios of processor time."""
    cpu = {name: statistics.median(cost.cpu for cost in some) for name, some in costs.items()}
    baseline = cpu["torchvision/Pillow DataLoader"]
    lines = [
        f"{setting.index.source}: {setting.batches} x {setting.batch_size} images of {setting.cfg.crop_size} pixels a repeat, "
        f"{setting.cfg.threads} threads, {setting.device}, medians of {len(costs['ijepa_ds'])} interleaved repeats",
        f"{'':<32}{'images/s':>10}{'CPU ms/image':>14}{'images/CPU s':>14}{'x Pillow':>10}{'of decode only':>16}",
    ]
    for name, some in costs.items():
        wall = statistics.median(cost.wall for cost in some)
        share = f"{cpu['decode only'] / cpu[name]:.0%}" if "decode only" in cpu else "-"
        lines.append(
            f"{name:<32}{1 / wall:>10.0f}{1000 * cpu[name]:>14.2f}{1 / cpu[name]:>14.0f}"
            f"{baseline / cpu[name]:>10.2f}{share:>16}"
        )
    return "\n".join(lines)


def _timed(setting: Setting, step: Callable[[], Any]) -> Cost:
    """Run all batches; return the cost after the warm-up, of this process and its threads."""
    for _ in range(_WARM_UP):
        step()
    _synchronize(setting.device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(setting.batches):
        step()
    _synchronize(setting.device)
    images = setting.batches * setting.batch_size
    return Cost((time.perf_counter() - wall) / images, (time.process_time() - cpu) / images)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ours(setting: Setting) -> Cost:
    batches = ImageBatches(
        setting.cfg,
        setting.index,
        seed=0,
        batch_size=setting.batch_size,
        micro_batch=setting.batch_size,
        rank=0,
        world_size=1,
        accumulation=1,
        start_step=0,
        device=setting.device,
    )
    try:
        return _timed(setting, lambda: normalize(next(batches), setting.cfg.mean, setting.cfg.std, setting.dtype))
    finally:
        batches.close()


def _decode_only(setting: Setting) -> Cost:
    """The same decoder on the same windows, without the rest of the pipeline."""
    from ijepa_ds.data.dali import DaliBackend

    backend = DaliBackend(setting.plan(), setting.cfg, setting.device, decode_only=True)
    micro = iter(range(setting.total))
    try:
        return _timed(setting, lambda: backend.batch(next(micro)))
    finally:
        backend.close()


class _Crops(Dataset):
    """A typical torchvision data set, with the crops of the plan."""

    def __init__(self, setting: Setting) -> None:
        plan = setting.plan()
        samples = [plan.samples(micro) for micro in range(setting.total)]
        self._indices = np.concatenate([some.indices for some in samples])
        self._windows = np.concatenate([some.windows for some in samples])
        self._plan, self._cfg = plan, setting.cfg

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Tensor:
        import io

        from PIL import Image
        from torchvision.transforms.v2 import functional

        content = self._plan.reader.read(int(self._indices[position]))
        with Image.open(io.BytesIO(content), formats=FORMATS) as file:
            image = file.convert("RGB")
        side = self._cfg.crop_size
        crop = functional.resized_crop(image, *self._windows[position].tolist(), [side, side], antialias=True)
        pixels = functional.to_dtype(functional.pil_to_tensor(crop), torch.float32, scale=True)
        return functional.normalize(pixels, list(self._cfg.mean), list(self._cfg.std))


def _stack(images: list[Tensor]) -> tuple[Tensor, int, float]:
    """The batch, the id of its worker, and the CPU seconds the worker has used."""
    return torch.stack(images), os.getpid(), time.process_time()


class _PillowRow:
    """The DataLoader; its workers are kept between repeats and report their CPU time."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._loader = DataLoader(
            _Crops(setting),
            batch_size=setting.batch_size,
            num_workers=setting.cfg.threads,
            persistent_workers=True,
            collate_fn=_stack,
            pin_memory=setting.device.type == "cuda",
        )

    def __call__(self) -> Cost:
        batches = iter(self._loader)
        stamps: dict[int, list[float]] = {}

        def step() -> None:
            images, worker, used = next(batches)
            stamps.setdefault(worker, []).append(used)
            images.to(self._setting.device, self._setting.dtype, non_blocking=True)

        here = _timed(self._setting, step)
        next(batches, None)  # the end of the epoch: workers become idle
        size = self._setting.batch_size
        spans = [(used[-1] - used[0], size * (len(used) - 1)) for used in stamps.values()]
        if not any(images for _, images in spans):
            raise UserError(f"--batches: {len(spans)} workers delivered one batch each; make twice --threads, or more")
        there = sum(seconds for seconds, _ in spans) / sum(images for _, images in spans)
        return Cost(here.wall, here.cpu + there)
