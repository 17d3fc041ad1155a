"""`ijepa-ds data scenes|objects`: demo images without a download, as class folders and `scenes.json`.

`scenes` are in the style of CLEVR: 3 to 10 solids, the class is their number. `objects` have one large solid, the class is
its shape, colour or material. An image is a function of (seed, index, size) and does not depend on the number of workers.
`scenes.json` has CLEVR's format, for evaluations of counting and distance.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ijepa_ds.arguments import add_out
from ijepa_ds.errors import UserError
from ijepa_ds.scenes import dense, layout, objects
from ijepa_ds.scenes.paint import Traced
from ijepa_ds.terminal import Bar

_MIN_SIZE, _MAX_SIZE = 16, 512  # pixels; larger images would need too much memory
_QUALITY = 92
COUNT = "count"  # the class of scenes
IMAGES = "images"  # folder of the images beside their dense labels
_CHUNK = 32  # images per task of a worker

_log = logging.getLogger(__name__)


def _trace(classes: str, seed: int, index: int, size: int) -> Traced:
    return layout.trace(seed, index, size) if classes == COUNT else objects.trace(classes, seed, index, size)


def _class_names(classes: str, seed: int, num: int) -> set[str]:
    """The classes that `num` images have."""
    if classes == COUNT:
        return {f"{layout.object_count(seed, index):02d}_objects" for index in range(min(num, layout.MAX_OBJECTS))}
    return {objects.class_of(classes, seed, index) for index in range(min(num, 2 * len(objects.CLASSES[classes])))}


def _render_chunk(
    start: int, *, classes: str, folder: Path, images: Path, stop: int, size: int, seed: int, split: str
) -> list[dict[str, Any]]:
    """Render images start .. min(start + _CHUNK, stop) - 1 into class folders and return their records.

    `images` is `folder`, or a folder in it, beside those of dense labels.
    """
    scenes, stem = [], "scene" if classes == COUNT else "object"
    for index in range(start, min(start + _CHUNK, stop)):
        traced = _trace(classes, seed, index, size)
        name = f"{traced.label}/{stem}_{index:06d}"
        # No chroma subsampling: at 64 pixels a small object is as large as one block of subsampled chroma.
        Image.fromarray(traced.picture()).save(images / f"{name}.jpg", quality=_QUALITY, subsampling=0)
        if images != folder:
            dense.write(traced.canvas, folder, f"{name}.png")
        scenes.append({"image_index": index, "image_filename": f"{name}.jpg", "split": split, "objects": traced.objects})
    return scenes


def _chunks(workers: int, num: int, **job: Any) -> Iterator[list[dict[str, Any]]]:
    """Yield the records of all chunks in order, rendered in this process or by `workers` processes."""
    render_chunk = partial(_render_chunk, stop=num, **job)
    starts = range(0, num, _CHUNK)
    if workers == 1 or len(starts) == 1:
        yield from map(render_chunk, starts)
        return
    pool = ProcessPoolExecutor(min(workers, len(starts)), mp_context=multiprocessing.get_context("spawn"))
    try:
        yield from pool.map(render_chunk, starts)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a rendering process died (out of memory, or started from a script without "
            "`if __name__ == '__main__':`); no image was kept; try again with --workers 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check(out: Path, num: int, size: int, seed: int, workers: int) -> None:
    for name, value, low, high in (
        ("num", num, 1, 10**6),
        ("size", size, _MIN_SIZE, _MAX_SIZE),
        ("seed", seed, 0, 2**64 - 1),
        ("workers", workers, 1, 1024),
    ):
        if not low <= value <= high:
            raise UserError(f"{name} is {value}, expected {low} to {high}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder; choose another --out, or remove it first")


def render(
    out: Path,
    num: int,
    size: int,
    seed: int,
    workers: int | None = None,
    progress: bool = True,
    split: str = "train",
    classes: str = COUNT,
    dense_labels: bool = False,
) -> None:
    """Render a data set: `out`/03_objects/scene_000000.jpg ... or `out`/cube/object_000000.jpg ..., and `out`/scenes.json.

    The files are written to a hidden folder next to `out`, which is renamed at the end, so `out` is complete or absent.

    Args:
        out: A folder that does not exist or is empty.
        num: Number of images; class sizes differ by at most one.
        size: Side of the images in pixels, 16 to 512.
        seed: 0 .. 2**64 - 1; use a different seed for a test set.
        workers: Processes, by default 2, or 1 on a machine with one core; does not change the images.
        progress: Show a progress bar on a terminal.
        split: Name of the split in `scenes.json`.
        classes: `count`: scenes, by number of objects; or a key of `objects.CLASSES`: one large object.
        dense_labels: write the images and scenes.json to `out`/images, and a PNG of each image to `out`/objects (number of
            the object of each pixel, 0 is the ground), `out`/shapes (its shape, `dense.SHAPE_INDEX`) and `out`/depth
            (16 bits, `dense.DEPTH_SCALE` a world unit).

    Raises:
        ValueError: An argument is out of range, or `out` is not empty.
        RuntimeError: A worker process died.
    """
    out = Path(out).absolute()
    workers = min(2, os.cpu_count() or 1) if workers is None else workers
    _check(out, num, size, seed, workers)
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    images = folder / IMAGES if dense_labels else folder
    parts = [images, *(folder / kind for kind in dense.FOLDERS)] if dense_labels else [images]
    try:
        for name in _class_names(classes, seed, num):
            for part in parts:
                (part / name).mkdir(parents=True)
        scenes: list[dict[str, Any]] = []
        with Bar(f"render {out.name}", num, "images", show=progress) as bar:
            for chunk in _chunks(
                workers, num, classes=classes, folder=folder, images=images, size=size, seed=seed, split=split
            ):
                scenes += chunk
                bar.update(len(chunk))
        verb = "scenes" if classes == COUNT else f"objects --classes {classes}"
        info: dict[str, Any] = {"generator": f"ijepa-ds data {verb}", "split": split, "seed": seed, "size": size, "num": num}
        if dense_labels:
            names = "\n".join(("ground", *dense.SHAPE_INDEX)) + "\n"  # `ijepa-ds eval segment` reads it
            (folder / "shapes" / "classes.txt").write_text(names, encoding="utf-8")
            info["shapes"] = dense.SHAPE_INDEX
            info["depth_scale"] = dense.DEPTH_SCALE
        (images / "scenes.json").write_text(json.dumps({"info": info, "scenes": scenes}), encoding="utf-8")
        # Replaces an empty folder, and fails if it was filled in the meantime.
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data scenes`."""
    add_common(parser)
    parser.set_defaults(classes=COUNT)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Arguments of both kinds of images."""
    add_out(parser, "folder to make; must not exist, or be empty")
    parser.add_argument("--num", type=int, required=True, help="number of images")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other images, say for a test set")
    parser.add_argument("--workers", type=int, help="processes (default 2 at most); does not change the pictures")
    parser.add_argument(
        "--dense", action="store_true",
        help="also write the object, the shape and the depth of each pixel as PNG; images then lie in OUT/images",
    )  # fmt: skip
    parser.add_argument("--split", default="train", help="name written to scenes.json (default train)")


def run(args: argparse.Namespace) -> int:
    """Render the data set; return 0."""
    render(
        args.out, args.num, args.size, args.seed, args.workers,
        split=args.split, classes=args.classes, dense_labels=args.dense,
    )  # fmt: skip
    images = args.out / IMAGES if args.dense else args.out
    _log.info("%d images of %d pixels and scenes.json in %s", args.num, args.size, images)
    if args.dense:
        _log.info("labels of each pixel in %s", ", ".join(str(args.out / kind) for kind in dense.FOLDERS))
    return 0
