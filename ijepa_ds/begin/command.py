"""`ijepa-ds init DIR --data IMAGES`: look at images and machine, write a first configuration, say which commands to run."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
from pathlib import Path

import numpy as np

from ijepa_ds.arguments import check_at_least
from ijepa_ds.begin.choose import Choice, Found, choose
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.statistics import measure
from ijepa_ds.doctor.check import check_start
from ijepa_ds.doctor.probe import list_gpus
from ijepa_ds.durable import write_text
from ijepa_ds.errors import UserError
from ijepa_ds.examples import shipped

logger = logging.getLogger(__name__)
CONFIG, DEEPSPEED = "config.yaml", "deepspeed.json"
_SAMPLE = 1_000  # images
_A_HOST = 8  # GPUs
_MAX_PIXELS = 100_000_000
_ON_CPU = """\
  width: 128  # a small network, to try the commands on a CPU
  depth: 4
  heads: 4
"""


def run(args: argparse.Namespace) -> int:
    """Write the files and check them as a start does; return 0, or the exit code of that check."""
    check_at_least(args, workers=1, **({} if args.gpus is None else {"gpus": 0}))
    there = [str(args.folder / name) for name in (CONFIG, DEEPSPEED) if (args.folder / name).exists()]
    if there:
        raise UserError(f"{', '.join(there)}: exists; choose another DIR, or remove it first")
    found = look(args.data, len(list_gpus()) if args.gpus is None else args.gpus, args.workers)
    choice = choose(found)
    write_text(args.folder / CONFIG, configuration(args.data, args.folder, found, choice))
    write_text(args.folder / DEEPSPEED, shipped(f"ds_configs/zero{choice.stage}.json").read_text(encoding="utf-8"))
    logger.info("%s", _said(found, choice))
    files = argparse.Namespace(config=args.folder / CONFIG, deepspeed_config=args.folder / DEEPSPEED, overrides=[])
    code = check_start(
        files, max(1, found.gpus), f"written: {files.config}, {files.deepspeed_config}; nothing would stop the run"
    )
    logger.info("\n%s", commands(args.folder, args.data, found))
    return code


def look(source: str, gpus: int, workers: int) -> Found:
    """Look at the images of a source."""
    index = open_source(source, ScanOptions(max_pixels=_MAX_PIXELS, progress=True))
    sizes = index.sizes[index.readable()].min(axis=1)
    if not len(sizes):
        raise UserError(f"--data: none of the {len(index)} images in {source!r} can be read (ijepa-ds data check)")
    seen = measure(index, _SAMPLE, 0, workers, _MAX_PIXELS)
    if not seen.images:
        raise UserError(f"--data: none of {len(seen.unreadable)} images of {source!r} can be decoded (ijepa-ds data check)")
    return Found(
        images=len(sizes),
        shorter=float(np.median(sizes)),
        smallest=float(np.percentile(sizes, 5)),
        mean=tuple(seen.mean().round(3).tolist()),
        std=tuple(seen.deviation().round(3).tolist()),
        classes=len(index.classes),
        gpus=gpus,
    )


def configuration(source: str, folder: Path, found: Found, choice: Choice) -> str:
    """The text of the YAML, with a reason for each choice."""
    side = f"{found.shorter:g} pixels is the median of the shorter sides"
    few = "  # the published sampler leaves too few patches to a context on this grid" if not choice.published_masks else ""
    masks = "published" if choice.published_masks else "unbiased"
    context = f"\n  context_tokens: {choice.grid**2 // 4}  # a quarter of the patches" if not choice.published_masks else ""
    rate = "the published 1e-3 times sqrt(batch / 2048)" if found.gpus else "as configs/quickstart.yaml"
    decay = "0.4" if choice.model in ("base", "large", "huge") else "0.05"
    predictor = "{depth: 4, width: 64, heads: 4}" if not found.gpus else _predictor(choice.model)
    return f"""\
# A first configuration for {source}, written by `ijepa-ds init`. docs/begin.md has the reasons, docs/configuration.md all keys.
run:
  dir: {_text(folder / "run")}
  checkpoint_every: 500  # steps

data:
  source: {_text(source)}
  crop_size: {choice.crop}  # {side}
  crop_scale: [0.3, 1.0]  # share of an image's area; objects of one size need 0.6 and more
  horizontal_flip: true  # false where left and right differ, such as in text
  mean: [{", ".join(f"{value:g}" for value in found.mean)}]  # of a sample of these images
  std: [{", ".join(f"{value:g}" for value in found.std)}]

model:
  name: {choice.model}  # {found.images:,} images
  patch_size: {choice.patch}  # {choice.grid} x {choice.grid} patches
{"" if found.gpus else _ON_CPU}  precision: auto  # bfloat16 on GPUs that have it
  predictor: {predictor}

masks:
  sampler: {masks}{few}{context}

optimization:
  batch_size: {choice.batch}  # over all ranks; any number of ranks that divides it gives the same run
  epochs: {choice.epochs}
  warmup_epochs: {max(1, choice.epochs // 8)}
  lr: {choice.lr:.1e}  # {rate}; try half and twice
  start_lr: {choice.lr / 5:.1e}
  final_lr: 1.0e-6
  weight_decay: 0.04
  final_weight_decay: {decay}
  ema: [0.996, 1.0]
"""


def _predictor(model: str) -> str:
    depth, width, heads = {"tiny": (6, 96, 3), "small": (6, 192, 6)}.get(model, (12, 384, 12))
    return f"{{depth: {depth}, width: {width}, heads: {heads}}}"


def _text(value: str | Path) -> str:
    return json.dumps(str(value))  # a YAML string, whatever is in it


def _said(found: Found, choice: Choice) -> str:
    kind = f"{found.gpus} GPU{'s' if found.gpus != 1 else ''}" if found.gpus else "the CPU"
    lines = [
        f"{found.images:,} images, shorter side {found.shorter:g} pixels (median), {found.classes or 'no'} classes; {kind}",
        f"crop {choice.crop}, patch {choice.patch}, model {choice.model}, batch {choice.batch}, {choice.epochs} epochs "
        f"of {found.images // choice.batch:,} steps, ZeRO-{choice.stage}",
    ]
    return "\n".join([*lines, *(f"warning: {line}" for line in choice.warnings)])


# 500 steps; a length in epochs has to go first
TRIAL = "optimization.epochs=null optimization.warmup_epochs=null optimization.steps=500 optimization.warmup_steps=50"


def commands(folder: Path, source: str, found: Found) -> str:
    """What to run next."""
    here, ranks = shlex.quote(str(folder)), max(1, found.gpus)
    files = f"--config {here}/{CONFIG} --deepspeed_config {here}/{DEEPSPEED}"
    where, several = f"--num_gpus {ranks}", ""
    if ranks > _A_HOST:
        where = "--hostfile hostfile"
        several = f"--nnodes {math.ceil(ranks / _A_HOST)} --rdzv_backend c10d --rdzv_endpoint FIRST_HOST:29500 "
    labelled = shlex.quote(source) if found.classes else "TRAIN"
    return "\n".join(
        [
            f"train:     deepspeed {where} --module ijepa_ds.train {files}",
            f"   or:     torchrun {several}--nproc_per_node {min(ranks, _A_HOST)} -m ijepa_ds.train {files}",
            f"trial:     the same command with run.dir={here}/trial {TRIAL}",
            f"evaluate:  ijepa-ds eval knn --checkpoint {here}/run --train {labelled} --test TEST --baseline untrained "
            f"--out {here}/eval",
            f"load:      encoder, transform = ijepa_ds.load_encoder({str(folder / 'run')!r})",
        ]
    )
