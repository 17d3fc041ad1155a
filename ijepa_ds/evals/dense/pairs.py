"""Images with a label or a depth for every pixel: where they lie, and how they are read and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from math import isinf
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ijepa_ds.data.image_header import read_header
from ijepa_ds.data.index import describe
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.errors import ContentError, UserError
from ijepa_ds.evals.dense import layouts
from ijepa_ds.evals.dense.labels import Reading
from ijepa_ds.evals.folders import Labelled, Pair
from ijepa_ds.evals.ranks import ALONE, World
from ijepa_ds.terminal import track

TASKS = ("segment", "depth")
_LONGEST = 8.0  # aspect ratio; the windows of a longer strip would take much memory
_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table",
    "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv",
)  # fmt: skip
_CITYSCAPES = {  # id -> name of the 19 classes that are scored
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light", 20: "traffic sign",
    21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train",
    32: "motorcycle", 33: "bicycle",
}  # fmt: skip


@dataclass(frozen=True)
class DenseImages(Labelled):
    """Images with a file of labels or depths each.

    Attributes:
        truth: n files.
    """

    truth: Sequence[str] = ()

    def subset(self, keep: Sequence[int]) -> DenseImages:
        """The images at some positions."""
        return _images([self.paths[i] for i in keep], [self.truth[i] for i in keep])


@dataclass(frozen=True)
class DensePair(Pair):
    """Training and test images of a dense task.

    Attributes:
        reading: of the files of labels or depths.
        names: of the classes; empty: none are known, or depths.
        looked: of each source, the highest class that this rank has seen, and 1 if a pixel counts.
    """

    reading: Reading = field(default_factory=Reading)
    names: tuple[str, ...] = ()
    looked: tuple[tuple[int, int], ...] = ()

    @property
    def chance(self) -> None:
        """No score of chance is defined."""
        return None


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the options say about both sources.

    Attributes:
        task: of `TASKS`.
        layout: of `options.evals.LAYOUTS`.
        labels: folder of labels in a source; None: masks, or depth.
        ignore: value that stands for no label.
        depth_scale: values of an integer depth file per unit.
        max_depth: larger depths are ignored.
        max_pixels: larger images are refused.
        values: how images become channels.
    """

    task: str
    layout: str = "folders"
    labels: str | None = None
    ignore: int = 255
    depth_scale: float = 1000.0
    max_depth: float = float("inf")
    max_pixels: int
    values: Values = PLAIN

    def plain(self) -> dict[str, Any]:
        """What a result says of them, besides the evaluation's own settings."""
        found: dict[str, Any] = {"layout": self.layout, "labels": self.labels}
        if self.task == "segment":
            return found | {"ignore": self.ignore}
        return found | {"depth_scale": self.depth_scale, "max_depth": None if isinf(self.max_depth) else self.max_depth}


def read_dense(
    train: str, test: str, source: Source, threads: int, world: World = ALONE, beat: Callable[[], None] = lambda: None
) -> DensePair:
    """Find all images of both sources, and check those of this rank's share: each file of labels is read once.

    `beat` is called while files are read.

    Returns:
        what this rank found; `settle` completes it.

    Raises:
        UserError: names what is missing or wrong.
    """
    parts, looked, found = {}, [], []
    reading, names = _reading(source, Path(train))
    for option, folder in (("--train", train), ("--test", test)):
        arrays = source.values.layout is not None
        images, truth = layouts.find(source.layout, option, Path(folder), _labels(source), option == "--train", arrays)
        parts[option] = _images(images, truth)
        mine = parts[option].subset(world.share(len(images)))
        looked.append(_check(option, mine, reading, source, threads, beat, quiet=world.rank > 0))
        found.append(f"{option} {folder}: {len(images):,} images")
    same = parts["--train"].paths[0] == parts["--test"].paths[0]
    notes = ("--train and --test are the same images: the scores say nothing about new ones",) if same else ()
    return DensePair(
        train=parts["--train"], test=parts["--test"], classes=names or ("depth",), notes=notes, found=tuple(found),
        reading=reading, names=names, looked=tuple(looked),
    )  # fmt: skip


def settle(pair: DensePair, world: World = ALONE) -> DensePair:
    """Combine what all ranks have seen; every rank calls it and gets the same.

    Raises:
        UserError: all pixels of a source are ignored, a class that the data set lacks, or a single class.
    """
    seen = torch.tensor(pair.looked)  # [2 sources, highest class and whether a pixel counts]
    if world.size > 1:
        dist.all_reduce(seen, op=dist.ReduceOp.MAX, group=world.group)
    for option, part, some in zip(("--train", "--test"), (pair.train, pair.test), seen[:, 1].tolist(), strict=True):
        if not some:
            what, where = (
                ("have no depth above 0", "--depth-scale and --max-depth")
                if pair.reading.depth
                else ("are ignored", "--ignore")
            )
            raise UserError(f"{option}: all pixels of its {len(part.labels)} images {what}; look at {where}")
    if pair.reading.depth:
        return pair
    highest, first = int(seen[:, 0].max()), pair.reading.first
    names = pair.names or tuple(f"class {number + first}" for number in range(highest + 1))
    if highest >= len(names):
        raise UserError(f"--train, --test: class number {highest + first}, but {len(names)} classes are known")
    if len(names) < 2:
        raise UserError("--train, --test: every pixel has the same class, at least two classes are needed")
    return replace(pair, names=names, classes=names)


def _labels(source: Source) -> str:
    """Folder of labels beside `images`."""
    return source.labels or layouts.USUAL[source.task]


def _images(paths: Sequence[str], truth: Sequence[str]) -> DenseImages:
    return DenseImages(paths=list(paths), labels=torch.zeros(len(paths), dtype=torch.int64), truth=list(truth))


def _reading(source: Source, train: Path) -> tuple[Reading, tuple[str, ...]]:
    """How files are read, and the names of the classes where they are known."""
    if source.task == "depth":
        return Reading(depth=True, scale=source.depth_scale, farthest=source.max_depth), ()
    if source.layout == "ade20k":
        return Reading(ignore=None, first=1), tuple(f"class {number}" for number in range(1, 151))
    if source.layout == "voc2012":
        return Reading(), _VOC
    if source.layout == "cityscapes":
        known = {value: number for number, value in enumerate(_CITYSCAPES)}
        return Reading(ignore=None, known=known), tuple(_CITYSCAPES.values())
    listed = train / _labels(source) / "classes.txt"
    names = tuple(listed.read_text(encoding="utf-8").split("\n")) if listed.is_file() else ()
    return Reading(ignore=source.ignore), tuple(name.strip() for name in names if name.strip())


def size_of(path: str, values: Values) -> tuple[int, int]:
    """Width and height of an image, from its header.

    Raises:
        ContentError: it cannot be used.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        header = read_header(file, values.layout)
    return header.width, header.height


def _check(
    option: str, images: DenseImages, reading: Reading, source: Source, threads: int, beat: Callable[[], None], quiet: bool
) -> tuple[int, int]:
    """Read every image's header and every file of labels.

    Returns:
        the highest class, and 1 if a pixel counts.

    Raises:
        UserError: names the files that are wrong.
    """

    def look(position: int) -> tuple[str, int, bool]:
        try:
            values = reading.read(images.truth[position])
            width, height = size_of(images.paths[position], source.values)
            if values.shape != (height, width):
                return f"{values.shape[1]} x {values.shape[0]} pixels, its image has {width} x {height}", 0, False
            if max(width, height) > _LONGEST * min(width, height):
                return f"its image is a strip of {width} x {height} pixels, expected at most {_LONGEST:g} : 1", 0, False
            if width * height > source.max_pixels:
                return f"its image has {width * height} pixels, more than data.max_pixels {source.max_pixels}", 0, False
        except ContentError as error:
            return f"its image {images.paths[position]}: {error}", 0, False
        except (OSError, ValueError, SyntaxError) as error:  # SyntaxError: Pillow, for some damaged PNGs
            return str(error), 0, False
        return "", int(values.max()), bool((values > 0 if reading.depth else values >= 0).any())

    with ThreadPoolExecutor(threads, thread_name_prefix="labels") as pool:
        looked, every = [], pool.map(look, range(len(images.labels)))
        for one in track(every, f"{option}, labels", "images", total=len(images.labels), show=not quiet):
            looked.append(one)
            beat()
    wrong = [(str(images.truth[at]), text) for at, (text, _, _) in enumerate(looked) if text]
    if wrong:
        raise UserError(f"{option}: {len(wrong)} of {len(looked)} files of labels cannot be used: {describe(wrong)}")
    return max((highest for _, highest, _ in looked), default=0), int(any(some for _, _, some in looked))
