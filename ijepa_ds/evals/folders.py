"""Labelled images of an evaluation: training and test folders with the same classes, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ijepa_ds.data.classes import describe_classes
from ijepa_ds.data.crops import crop_windows, flips
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.pillow import MAX_PIXELS
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import open_source
from ijepa_ds.data.transforms import joined, load_eval_images, read_layers
from ijepa_ds.data.values import Values
from ijepa_ds.errors import UserError

_SHOWN = 5  # class names in a message


@dataclass(frozen=True)
class Labelled:
    """Images with one class each.

    Attributes:
        paths: n images.
        labels: int64 [n], index into the pair's classes.
    """

    paths: Sequence[str]
    labels: Tensor

    def subset(self, keep: Sequence[int]) -> Labelled:
        """The images at some positions."""
        chosen = self.paths.subset(np.asarray(keep)) if isinstance(self.paths, ImageFiles) else [self.paths[i] for i in keep]
        return Labelled(chosen, self.labels[torch.tensor(keep, dtype=torch.int64)])


@dataclass(frozen=True)
class Pair:
    """Training and test images of a classifier.

    Attributes:
        train: at least one image of every class.
        test: images of the same classes.
        classes: names, sorted.
        notes: remarks about the folders for the reader of the scores.
        found: a line about each source: its images and classes.
    """

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    found: tuple[str, ...] = ()

    @property
    def chance(self) -> float | None:
        """Accuracy in percent of always predicting the most frequent training class; None if that has no meaning."""
        frequent = self.train.labels.bincount(minlength=len(self.classes)).argmax()
        return 100 * float((self.test.labels == frequent).double().mean())


def read_pair(train_source: str, test_source: str, options: ScanOptions | None = None, labelled: bool = True) -> Pair:
    """Scan labelled training and test images; classes are matched by name.

    Args:
        train_source: a source with classes (docs/data.md).
        test_source: the same.
        options: of the scans.
        labelled: False: ignore classes; all labels are 0.

    Raises:
        ValueError: a folder without classes or with images outside them, a single class, or test classes that
            the training folder lacks.
    """
    train, test = (
        _scan(option, source, options or ScanOptions(), labelled)
        for option, source in (("--train", train_source), ("--test", test_source))
    )
    if not labelled:
        parts = [_labelled(index, np.zeros(len(index), dtype=np.int64)) for index in (train, test)]
        return Pair(train=parts[0], test=parts[1], classes=("any",), notes=())
    if len(train.classes) < 2:
        raise UserError(
            f"--train: {train_source!r} has the single class {train.classes[0]!r}, at least two are needed; "
            "give the folder that holds the class folders"
        )
    number = {name: label for label, name in enumerate(train.classes)}
    unknown = [name for name in test.classes if name not in number]
    if unknown:
        raise UserError(
            f"--test: {test_source!r} has classes that --train {train_source!r} lacks: {_names(unknown)}; "
            f"the training classes are {_names(train.classes)}; --class-level (data.class_level) chooses the folders of "
            "a path that make the class"
        )
    renumber = np.array([number[name] for name in test.classes], dtype=np.int64)
    return Pair(
        train=_labelled(train, train.labels.astype(np.int64)),
        test=_labelled(test, renumber[test.labels]),
        classes=train.classes,
        notes=tuple(_notes(train, test)),
        found=tuple(
            f"{option} {source}: {len(index):,} images, {describe_classes(index)}"
            for option, source, index in (("--train", train_source, train), ("--test", test_source, test))
        ),
    )


def limited(pair: Pair, max_train: int | None, max_test: int | None, seed: int) -> Pair:
    """A random part of the images, with as many of each class as there are, to one; None keeps all. The pair's notes say it.

    Raises:
        UserError: fewer training images than classes.
    """
    classes = len(pair.train.labels.unique())
    if max_train is not None and max_train < classes:
        raise UserError(f"--max-train {max_train}: fewer than the {classes} classes, each of which needs an image")
    parts, notes = {}, []
    for name, images, most in (("train", pair.train, max_train), ("test", pair.test, max_test)):
        parts[name], total = images, len(images.labels)
        if most is None or most >= total:
            continue
        parts[name] = images.subset(balanced(images.labels.numpy(), most, seed).tolist())
        notes.append(f"--max-{name}: {most:,} of {total:,} images, spread over the classes, chosen by seed {seed}")
    return replace(pair, train=parts["train"], test=parts["test"], notes=(*pair.notes, *notes))


def balanced(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Places of `most` images, int64 sorted: one of each class at random, then a second of each, and so on.

    Args:
        labels: int [n], n >= most.
        most: images.
        seed: of the choice.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by class, at random within it
    starts = np.searchsorted(labels[order], labels[order])
    turn = np.arange(len(labels)) - starts  # how many of its class come before it
    return np.sort(order[np.lexsort((np.random.default_rng(seed + 1).random(len(labels)), turn))][:most])


def _labelled(index: ImageIndex, labels: np.ndarray) -> Labelled:
    """The readable images with labels, int64 [all images]."""
    readable = index.readable()
    return Labelled(ImageFiles(index, readable), torch.from_numpy(labels[readable]))


def _scan(option: str, source: str, options: ScanOptions, labelled: bool) -> ImageIndex:
    try:
        folder = open_source(source, options)
    except UserError as error:  # its message names the configuration key
        raise UserError(str(error).replace("data.source", option, 1)) from error
    outside = np.flatnonzero(np.asarray(folder.labels) < 0)
    if len(outside) and labelled:
        first = folder.display_path(int(outside[0]))
        what = f"has {len(outside)} images without a class, such as {first!r}" if folder.classes else "has no class folders"
        raise UserError(f"{option}: {source!r} {what}; expected one folder a class, such as dog/1.jpg and cat/1.jpg, or labels")
    return folder


def _notes(train: ImageIndex, test: ImageIndex) -> Iterator[str]:
    missing = [name for name in train.classes if name not in test.classes]
    if missing:
        yield f"classes without a test image: {_names(missing)}"
    single = [train.classes[label] for label in np.flatnonzero(np.bincount(train.labels[train.readable()]) == 1)]
    if single:
        yield f"classes with one training image only: {_names(single)}"
    for option, folder in (("--train", train), ("--test", test)):
        if folder.bad:
            yield f"{option}: {len(folder.bad)} unreadable images left out"
    if train.paths[0] == test.paths[0]:
        yield "--train and --test are the same folder: the scores say nothing about new images"


def _names(classes: Sequence[str]) -> str:
    shown = ", ".join(classes[:_SHOWN])
    return shown + (f" and {len(classes) - _SHOWN} more" if len(classes) > _SHOWN else "")


def batches(
    paths: Sequence[str],
    size: int,
    batch_size: int,
    threads: int,
    max_pixels: int = MAX_PIXELS,
    whole: bool = False,
    values: Values | None = None,
    filled: dict[str, int] | None = None,
) -> Iterator[np.ndarray]:
    """Read evaluation images in order; the next batch is read in a background thread.

    `whole` images are resized without a crop (`data.transforms.resize_whole`). `values` and `filled` are those of
    `data.transforms.read_layers`.

    Yields:
        uint8 [B, size, size, 3] with B = batch_size, fewer in the last; of other sources float32 [B, size, size, C].

    Raises:
        UnreadableError: naming an image that cannot be read.
    """

    def read(start: int) -> np.ndarray:
        return load_eval_images(paths[start : start + batch_size], size, threads, max_pixels, whole, values, filled)

    return _ahead(read, len(paths), batch_size)


def crop_batches(
    paths: Sequence[str],
    positions: Sequence[int],
    size: int,
    batch_size: int,
    threads: int,
    max_pixels: int = MAX_PIXELS,
    *,
    seed: int,
    scale: tuple[float, float],
) -> Iterator[np.ndarray]:
    """Read one random crop, flipped at random, of each image; a function of (seed, position).

    Yields:
        uint8 [B, size, size, 3] with B = batch_size, fewer in the last.

    Raises:
        UnreadableError: naming an image that cannot be read.
    """
    mirrored = flips(np.asarray(positions, dtype=np.int64), seed)

    def one(place: int) -> np.ndarray:
        path, number = paths[positions[place]], np.array([positions[place]], dtype=np.int64)
        layers = read_layers(path, max_pixels)
        sides = [np.array([side]) for side in layers[0].size]
        window = crop_windows(sides[0], sides[1], number, seed, scale, (3 / 4, 4 / 3))[0]
        top, left, height, width = (int(value) for value in window)
        box = (left, top, left + width, top + height)
        crop = joined([layer.crop(box).resize((size, size), Image.Resampling.BICUBIC) for layer in layers])
        return crop[:, ::-1] if mirrored[place] else crop

    def read(start: int) -> np.ndarray:
        with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
            return np.stack(list(pool.map(one, range(start, min(start + batch_size, len(positions))))))

    return _ahead(read, len(positions), batch_size)


def _ahead(read: Callable[[int], np.ndarray], total: int, batch_size: int) -> Iterator[np.ndarray]:
    """Yield `read(0)`, `read(batch_size)`, ...; each is read in a thread while the caller uses the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="eval") as pool:
        ahead = pool.submit(read, 0)
        for start in range(batch_size, total, batch_size):
            batch, ahead = ahead.result(), pool.submit(read, start)
            yield batch
        yield ahead.result()
