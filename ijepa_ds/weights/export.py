"""`ijepa-ds export`: write an encoder, or all networks, of a run or of other weights in a common format."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.durable import fsync, save_tensors
from ijepa_ds.weights import formats
from ijepa_ds.weights.card import model_card
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.open import WEIGHTS, open_source
from ijepa_ds.weights.resize import resized
from ijepa_ds.weights.source import Source

logger = logging.getLogger(__name__)
PUBLISHED = "checkpoint.pth.tar"
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".bin")


def export(source: Source, out: Path, format_: str = "safetensors", which: str | None = None, dtype: str = "float32") -> Path:
    """Write weights into a new folder, atomically.

    Tensors are read one by one; only the exported ones are held in memory.

    Args:
        source: what to write (`open_source`).
        out: folder to create, with the weights, a model card and the configuration files of the format.
        format_: `safetensors` (ours: any part, or all), `timm`, `hf` (`IJepaModel`), or `published` (all parts).
        which: target, context, predictor or all; None: all for `published`, else `Source.choose(None)`.
        dtype: float32, bfloat16 or float16.

    Returns:
        The weights file.

    Raises:
        WeightsError: this format cannot hold these weights; no files are left.
    """
    if which is None:
        which = "all" if format_ == "published" else source.choose(None)
    formats.check_exportable(source, format_, which)
    if out.suffix in _FILE_SUFFIXES:
        raise WeightsError(f"--out {out}: names a folder (the file in it gets its usual name): leave out {out.suffix}")
    if out.is_file() or out.is_dir() and any(out.iterdir()):
        raise WeightsError(f"--out {out}: exists and is not empty; name a new folder")
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        name = _write(source, aside, format_, which, dtype)
        (aside / "README.md").write_text(model_card(source, format_, which, dtype, name), encoding="utf-8")
        open_source(aside if name == WEIGHTS else aside / name, heads=source.size.heads)  # verify that it can be read back
        for path in (*aside.iterdir(), aside):
            fsync(path)
        if out.is_dir():
            out.rmdir()
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return out / name


def _write(source: Source, folder: Path, format_: str, which: str, dtype: str) -> str:
    """Write all files but the model card; return the name of the weights file."""
    type_ = formats.DTYPES[dtype]
    if format_ == "published":
        torch.save(formats.published_checkpoint(source, type_), folder / PUBLISHED)
        return PUBLISHED
    if format_ == "hf":
        tensors = formats.hugging_face_tensors(source, which, type_)
        _write_json(folder / "config.json", formats.hugging_face_config(source, dtype))
        if source.size.channels == 3 and (source.config is None or source.values.plain):  # else no processor fits
            _write_json(folder / "preprocessor_config.json", formats.hugging_face_preprocessor(source))
    elif which == "all":
        tensors = formats.all_tensors(source, type_, formats.LABELS)
    else:
        tensors = formats.part_tensors(source, which, type_)
    if format_ == "timm":
        _write_json(folder / "config.json", formats.timm_config(source))
    save_tensors(_contiguous(tensors), folder / WEIGHTS, formats.metadata(source, which))
    return WEIGHTS


def _contiguous(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value.contiguous() for name, value in tensors}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def run(args: argparse.Namespace) -> int:
    """Export; return exit code 0."""
    source = resized(open_source(args.run, args.heads, args.step), args.image_size, args.patch_size)
    for note in source.notes:
        logger.info("%s: %s", source.path, note)
    path = export(source, args.out, args.format_, args.which, args.dtype)
    size = path.stat().st_size / 2**20
    logger.info("written: %s (%.1f MiB, from %s); model card: %s", path, size, source.path, path.parent / "README.md")
    return 0
