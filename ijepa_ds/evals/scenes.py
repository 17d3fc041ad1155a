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
    """Depth of the nearest object (third pixel coordinate), cut at 8, 8.5, 9, 9.5 and 10: 6 classes."""
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
            scenes/CLEVR_train_scenes.json two folders up), or a scenes file beside or above its images.
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
    file, folder = find_scenes(option, Path(source))
    try:
        scenes = json.loads(file.read_text(encoding="utf-8"))["scenes"]
        pairs = [(scene["image_filename"], scene["objects"]) for scene in scenes]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{option}: {file} is not a file of scenes in CLEVR's format ({error!r})") from error
    if not pairs:
        raise ValueError(f"{option}: {file} has no scenes in it")
    paths, labels = [], []
    for name, objects in pairs:
        try:
            labels.append(label(objects))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{option}: {file}: the scene of {name!r} has no such label: {error!r}") from error
        paths.append(str(folder / name))
    lost = [path for path in paths if not Path(path).is_file()]
    if lost:
        raise ValueError(f"{option}: {len(lost)} of {len(paths)} images that {file} names are not there, such as {lost[0]}")
    return Labelled(paths, torch.tensor(labels))


def find_scenes(option: str, source: Path) -> tuple[Path, Path]:
    """Find the scenes file and the folder of its images.

    Raises:
        ValueError: there is no scenes file.
    """
    if source.is_file():
        match = re.fullmatch(r"CLEVR_(\w+)_scenes\.json", source.name)
        images = source.parent.parent / "images" / match[1] if match else source.parent
        return source, images if images.is_dir() else source.parent
    clevr = source.parent.parent / "scenes" / f"CLEVR_{source.name}_scenes.json"
    for file in (source / "scenes.json", clevr):
        if file.is_file():
            return file, source
    raise ValueError(f"{option}: no scenes for {str(source)!r}: expected {source / 'scenes.json'} or {clevr}")
