"""Demo pictures that need no download: rendered scenes in the manner of CLEVR, as class folders and `scenes.json`.

An image is a function of (seed, index, size) alone, whatever the number of workers. The class is the number of
objects; `scenes.json` has CLEVR's format, so that counting and distance evaluations read it as they read CLEVR.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ijepa_ds.data.scene_paint import HALF_VIEW, Camera, Canvas, Light, paint
from ijepa_ds.data.scene_shapes import SHAPES, Array, Solid

MIN_OBJECTS, MAX_OBJECTS = 3, 10
COLOURS = {  # sRGB
    "gray": (87, 87, 87),
    "red": (173, 35, 35),
    "blue": (42, 75, 215),
    "green": (29, 105, 20),
    "brown": (129, 74, 25),
    "purple": (129, 38, 192),
    "cyan": (41, 208, 208),
    "yellow": (255, 238, 51),
}
LINEAR = {name: ((np.array(srgb) / 255) ** 2.2).astype(np.float32) for name, srgb in COLOURS.items()}
SIZES = {"large": 0.7, "small": 0.35}  # radius, world units
MATERIALS = ("rubber", "metal")
_NEAREST = (7.5, 11.0)  # depth of the nearest object
_FARTHEST = 13.5
_GAP = 0.25  # between footprints
_MIN_SIZE = 16
_QUALITY = 92
_CHUNK = 32  # images a worker renders at a time
_OBJECT_TRIES, _SCENE_TRIES = 40, 200
_STREAM_SCENE, _STREAM_COUNTS = 0, 1

_log = logging.getLogger(__name__)


def _generator(seed: int, stream: int, index: int) -> np.random.Generator:
    """Random numbers of one image, or of one block of counts."""
    return np.random.Generator(np.random.Philox(key=[seed, index * 2 + stream]))


def object_count(seed: int, index: int) -> int:
    """Number of objects of an image: every eight images in a row hold each count once, in random order."""
    counts = MAX_OBJECTS - MIN_OBJECTS + 1
    order = _generator(seed, _STREAM_COUNTS, index // counts).permutation(counts)
    return MIN_OBJECTS + int(order[index % counts])


def _draw_camera(rng: np.random.Generator, size: int) -> Camera:
    """CLEVR's place, 11.3 away at 28 degrees above the ground, moved by up to 0.5 along each axis."""
    position = np.array([7.5, -6.5, 5.35]) + rng.uniform(-0.5, 0.5, 3)
    return Camera(position, np.array([0.0, 0.0, 0.7]) + rng.uniform(-0.1, 0.1, 3), size)


def _draw_light(rng: np.random.Generator, camera: Camera) -> Light:
    """Key lamp at a side and above, a fill lamp on the other side, a back lamp; a grey ground with a tint."""
    side = 1.0 if rng.random() < 0.5 else -1.0
    # Angles about the vertical, measured from the direction of the camera.
    angles = np.arctan2(camera.position[1], camera.position[0]) + side * np.array(
        [rng.uniform(0.4, 1.9), -rng.uniform(0.5, 1.2), rng.uniform(2.6, 3.6)]
    )
    distance = np.array([rng.uniform(5, 7.5), rng.uniform(7, 9), rng.uniform(5, 8)])
    height = np.array([rng.uniform(6.5, 9), rng.uniform(4, 6), rng.uniform(5, 7)])
    lamps = np.stack([distance * np.cos(angles), distance * np.sin(angles), height], 1).astype(np.float32)
    power = np.array([rng.uniform(0.6, 1.0), rng.uniform(0.12, 0.25), rng.uniform(0.05, 0.15)], np.float32)
    tint = 1 + rng.uniform(-0.07, 0.07, 3)
    waves = np.stack(
        [*rng.normal(0, 1.2, (2, 4)), rng.uniform(0, 2 * np.pi, 4), rng.uniform(0, 0.035, 4)], 1
    ).astype(np.float32)
    ground = (rng.uniform(0.28, 0.5) * tint).astype(np.float32)
    return Light(lamps, power, float(rng.uniform(0.6, 2.0)), float(rng.uniform(0.16, 0.3)), ground, waves)


def _draw_object(
    rng: np.random.Generator, camera: Camera, depths: tuple[float, float]
) -> tuple[Solid, dict[str, Any]]:
    """One object at a uniform place of the ground within the view and a range of depths, and its record."""
    shape, colour, size, material = (
        options[int(rng.integers(len(options)))] for options in (list(SHAPES), list(COLOURS), list(SIZES), MATERIALS)
    )
    radius, angle = SIZES[size], float(rng.uniform(0, 2 * np.pi))
    height = radius * SHAPES[shape].half_height
    depth = float(rng.uniform(*depths))
    across = float(rng.uniform(-1, 1)) * HALF_VIEW * depth
    # The row of the image at which this depth is at the height of the centre.
    along = (height - camera.position[2] - depth * camera.forward[2]) / camera.up[2]
    centre = camera.position + depth * camera.forward + across * camera.right + along * camera.up
    solid = Solid(shape, radius, centre.astype(np.float32), angle, LINEAR[colour], material == "metal")
    return solid, {"shape": shape, "color": colour, "size": size, "material": material}


def _measures(solid: Solid, camera: Camera) -> dict[str, Any]:
    """Where a solid is: the numbers of its record."""
    x, y, depth = (float(value) for value in camera.project(solid.centre))
    return {
        "3d_coords": [round(float(value), 4) for value in solid.centre],
        "rotation": round(float(np.degrees(solid.angle)), 3),
        "pixel_coords": [round(x, 3), round(y, 3), round(depth, 4)],
    }


def _is_apart(solid: Solid, others: list[Solid]) -> bool:
    return all(
        math.dist(solid.centre[:2], other.centre[:2]) > solid.radius + other.radius + _GAP for other in others
    )


def _draw_layout(rng: np.random.Generator, camera: Camera, count: int, nearest: float) -> tuple[Canvas, list] | None:
    """Place the nearest object at its depth and the others behind it; None where they do not find room."""
    canvas, records = Canvas(camera), []
    while len(records) < count:
        for _ in range(_OBJECT_TRIES):
            solid, record = _draw_object(rng, camera, (nearest, _FARTHEST) if records else (nearest, nearest))
            if _is_apart(solid, canvas.solids) and canvas.place(solid):
                records.append(record | _measures(solid, camera))
                break
        else:
            return None
    return canvas, records


def draw(seed: int, index: int, size: int) -> tuple[Array, list[dict[str, Any]]]:
    """Render one scene.

    Args:
        seed: 0 .. 2**64 - 1.
        index: Number of the image, from 0.
        size: Side in pixels.

    Returns:
        The picture, uint8 [size, size, 3], and its objects in CLEVR's format; their number is `object_count`.

    Raises:
        RuntimeError: The objects found no room in many attempts (not seen to happen).
    """
    rng = _generator(seed, _STREAM_SCENE, index)
    count = object_count(seed, index)
    camera = _draw_camera(rng, size)
    light = _draw_light(rng, camera)
    nearest = float(rng.uniform(*_NEAREST))
    for _ in range(_SCENE_TRIES):
        layout = _draw_layout(rng, camera, count, nearest)
        if layout is not None:
            canvas, records = layout
            grain = rng.random((2, *canvas.depth.shape), np.float32)
            return paint(canvas, light, grain), records
    raise RuntimeError(f"scene {index} of seed {seed}: {count} objects found no room at {size} pixels; use another seed")


def _render_chunk(start: int, *, folder: Path, stop: int, size: int, seed: int, split: str) -> list[dict[str, Any]]:
    """Render images start .. min(start + _CHUNK, stop) - 1 into class folders; their records."""
    scenes = []
    for index in range(start, min(start + _CHUNK, stop)):
        picture, objects = draw(seed, index, size)
        name = f"{len(objects):02d}_objects/scene_{index:06d}.jpg"
        # Full-resolution colour: at 64 pixels a small object is as large as one block of halved chroma.
        Image.fromarray(picture).save(folder / name, quality=_QUALITY, subsampling=0)
        scenes.append({"image_index": index, "image_filename": name, "split": split, "objects": objects})
    return scenes


def _chunks(workers: int, num: int, **job: Any) -> Iterator[list[dict[str, Any]]]:
    """Records of all chunks in order, rendered here or by `workers` processes."""
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
            "a rendering process died (killed for memory, or started from a script without "
            "`if __name__ == '__main__':`); nothing was kept, try again with workers = 1"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _check(out: Path, num: int, size: int, seed: int, workers: int) -> None:
    for name, value, low, high in (
        ("num", num, 1, 10**6),
        ("size", size, _MIN_SIZE, 1024),
        ("seed", seed, 0, 2**64 - 1),
        ("workers", workers, 1, 1024),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}, expected {low} to {high}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; choose another --out, or remove it first")


def render(
    out: Path, num: int, size: int, seed: int, workers: int | None = None, progress: bool = True, split: str = "train"
) -> None:
    """Render a data set: `out`/03_objects/scene_000000.jpg ... 10_objects, and `out`/scenes.json.

    Everything is written to a hidden folder next to `out` that is renamed at the end, so `out` is whole or absent.

    Args:
        out: A folder that does not exist, or is empty.
        num: Number of images; the classes' sizes differ by one at most.
        size: Side of the images in pixels, 16 to 1024.
        seed: 0 .. 2**64 - 1; use another one for a test set.
        workers: Processes; by default 2, or 1 on a machine with one core. Does not change the result.
        progress: Show a bar, if this is a terminal.
        split: Written to every scene of `scenes.json`.

    Raises:
        ValueError: An argument out of range, or `out` is not empty.
        RuntimeError: A worker process died.
    """
    out = Path(out).absolute()
    workers = min(2, os.cpu_count() or 1) if workers is None else workers
    _check(out, num, size, seed, workers)
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        for count in {object_count(seed, index) for index in range(min(num, MAX_OBJECTS))}:
            (folder / f"{count:02d}_objects").mkdir(parents=True)
        scenes: list[dict[str, Any]] = []
        with tqdm(total=num, unit="image", disable=None if progress else True) as bar:
            for chunk in _chunks(workers, num, folder=folder, size=size, seed=seed, split=split):
                scenes += chunk
                bar.update(len(chunk))
        info = {"generator": "ijepa-ds data scenes", "split": split, "seed": seed, "size": size, "num": num}
        (folder / "scenes.json").write_text(json.dumps({"info": info, "scenes": scenes}), encoding="utf-8")
        # Replaces an empty folder and fails on one that was filled meanwhile.
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data scenes`."""
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist, or be empty")
    parser.add_argument("--num", type=int, required=True, help="number of images")
    parser.add_argument("--size", type=int, default=64, help="side in pixels (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other scenes, say for a test set")
    parser.add_argument("--workers", type=int, help="processes (default 2 at most); does not change the pictures")
    parser.add_argument("--split", default="train", help="name written to scenes.json (default train)")


def run(args: argparse.Namespace) -> int:
    """Render as the arguments say; 0."""
    render(args.out, args.num, args.size, args.seed, args.workers, split=args.split)
    _log.info("%d images of %d pixels and scenes.json in %s", args.num, args.size, args.out)
    return 0
