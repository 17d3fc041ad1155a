"""CLEVR scenes as classification: number of objects and distance of the nearest (paper, section 6: Clevr/Count, Clevr/Dist).

Labels as in VTAB (Zhai et al. 2019), which the paper follows. `ijepa-ds data scenes` writes the same format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ijepa_ds.data.index import describe
from ijepa_ds.evals.folders import Labelled, Pair

FEWEST, MOST = 3, 10  # objects
NEAR = (8.0, 8.5, 9.0, 9.5, 10.0)
TASKS = ("count", "distance")
COUNT_CLASSES = tuple(f"{count} objects" for count in range(FEWEST, MOST + 1))
DISTANCE_CLASSES = ("to 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "above 10")


def count_label(objects: list[dict[str, Any]]) -> int:
    """Number of objects minus 3: 8 classes.

    Raises:
        ValueError: fewer than 3 objects or more than 10.
    """
    if not FEWEST <= len(objects) <= MOST:
        raise ValueError(f"{len(objects)} objects, expected {FEWEST} to {MOST}")
    return len(objects) - FEWEST


def distance_label(objects: list[dict[str, Any]]) -> int:
    """Depth of the nearest object (third pixel coordinate), cut at 8, 8.5, 9, 9.5 and 10: 6 classes.

    Raises:
        ValueError: no object, or one without `pixel_coords`. The depth cannot be computed from `3d_coords`, because a scene
            does not store its camera.
    """
    if not objects:
        raise ValueError("no objects, so none is the nearest")
    if not all("pixel_coords" in item for item in objects):
        raise ValueError("an object without 'pixel_coords', whose third number is its depth; CLEVR's generator writes it")
    nearest = min(float(item["pixel_coords"][2]) for item in objects)
    return int(np.searchsorted(NEAR, nearest, side="left"))  # a depth on a boundary belongs to the class below, as in VTAB


_LABELS: dict[str, tuple[Callable[[list[dict[str, Any]]], int], tuple[str, ...]]] = {
    "count": (count_label, COUNT_CLASSES),
    "distance": (distance_label, DISTANCE_CLASSES),
}


def read_scenes(task: str, train_source: str, test_source: str) -> Pair:
    """Read images of scenes with their labels.

    Args:
        task: of `TASKS`.
        train_source: a folder that `ijepa-ds data scenes` wrote (scenes.json in it), CLEVR's images/train (its scenes are in
            scenes/CLEVR_train_scenes.json two folders up), the output folder of CLEVR's generator or its folder `images`,
            a link to one of them, or a scenes file.
        test_source: the same, say images/val: CLEVR's test scenes are not public.

    Raises:
        ValueError: no scenes, scenes without objects or positions, missing images.
    """
    label, classes = _LABELS[task]
    train, test = (_read(option, source, label) for option, source in (("--train", train_source), ("--test", test_source)))
    notes = []
    for option, part in (("train", train), ("test", test)):
        absent = [name for number, name in enumerate(classes) if not bool((part.labels == number).any())]
        if absent:
            notes.append(f"classes without a {option} image: {', '.join(absent)}")
    if len(train.labels.unique()) < 2:
        raise ValueError(f"--train: {train_source!r}: all its scenes are of one class, at least two are needed")
    if train.paths[0] == test.paths[0]:
        notes.append("--train and --test are the same scenes: the scores say nothing about new images")
    return Pair(train=train, test=test, classes=classes, notes=tuple(notes))


def _read(option: str, source: str, label: Callable[[list[dict[str, Any]]], int]) -> Labelled:
    file, folders = find_scenes(option, Path(source))
    pairs = _scenes(option, file)
    folder = next((folder for folder in folders if (folder / pairs[0][0]).is_file()), folders[0])
    paths, labels, wrong = [], [], []
    for name, objects in pairs:
        try:
            labels.append(label(objects))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            wrong.append((name, str(error)))
        paths.append(str(folder / name))
    if wrong:
        raise ValueError(
            f"{option}: {file}: {len(wrong)} of {len(pairs)} scenes have no such label: {describe(wrong)}; leave them out of "
            "the file, or choose another task"
        )
    lost = [path for path in paths if not Path(path).is_file()]
    if lost:
        raise ValueError(f"{option}: {len(lost)} of {len(paths)} images that {file} names are not there, such as {lost[0]}")
    return Labelled(paths, torch.tensor(labels))


def _scenes(option: str, file: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """Image name and objects of every scene: of a file of scenes, or of a folder with a file for each scene."""
    parts = _single(file) if file.is_dir() else [file]
    pairs = []
    for part in parts:
        try:
            content = json.loads(part.read_text(encoding="utf-8-sig"))
            scenes = [content] if file.is_dir() else content["scenes"]
            pairs += [(scene["image_filename"], scene["objects"]) for scene in scenes]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{option}: {part} is not a file of scenes in CLEVR's format ({error!r})") from error
    if not pairs:
        raise ValueError(f"{option}: {file} has no scenes in it")
    return pairs


def _single(folder: Path) -> list[Path]:
    """Files of one scene each, which CLEVR's generator writes."""
    return sorted(file for file in folder.glob("*.json") if not file.name.endswith("_scenes.json"))


def find_scenes(option: str, source: Path) -> tuple[Path, list[Path]]:
    """Find the scenes file, or the folder with a file for each scene, and where its images may be, the likeliest first.

    Raises:
        ValueError: there is no scenes file.
    """
    if source.is_file():
        match = re.fullmatch(r"CLEVR_(\w+)_scenes\.json", source.name)
        split = [source.parent.parent / "images" / match[1]] if match else []
        return source, [folder for folder in (*split, source.parent / "images") if folder.is_dir()] + [source.parent]
    for folder in (source, source.resolve()):  # a link may stand elsewhere than its folder
        above = folder.parent
        for file, images in (
            (folder / "scenes.json", folder),
            (above.parent / "scenes" / f"CLEVR_{folder.name}_scenes.json", folder),
            (folder / "CLEVR_scenes.json", folder / "images"),  # the generator's output
            (above / "CLEVR_scenes.json", folder),
            (folder / "scenes", folder / "images"),
            (above / "scenes", folder),
        ):
            if file.is_file() or (file.is_dir() and images.is_dir() and _single(file)):
                return file, [images]
    expected = source / "scenes.json", source.parent.parent / "scenes" / f"CLEVR_{source.name}_scenes.json"
    raise ValueError(
        f"{option}: no scenes for {str(source)!r}: expected {expected[0]} or {expected[1]}, or CLEVR_scenes.json beside the "
        "folder `images` of CLEVR's generator"
    )
