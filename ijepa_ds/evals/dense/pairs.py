"""Images with a label or a depth for every pixel: where they lie, and how they are read and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from ijepa_ds.data.image_header import read_header
from ijepa_ds.data.index import describe
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.errors import ContentError, UserError
from ijepa_ds.evals.dense import layouts
from ijepa_ds.evals.folders import Labelled, Pair
from ijepa_ds.evals.ranks import ALONE, World

TASKS = ("segment", "depth")
_TRUTH = ("PNG", "TIFF")  # formats of labels; some of Pillow's others start programs
IGNORED = -1  # in labels as they are read; 0 in depths
_LONGEST = 8.0  # aspect ratio; the windows of a longer strip would take much memory
_MOST_CLASSES = 1000
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
class Reading:
    """How a file of labels or depths becomes numbers.

    Attributes:
        depth: depths instead of class labels.
        ignore: value that stands for no label; None: none does.
        first: value of the first class; lower ones are ignored.
        known: value -> class; other values are ignored; empty: values from `first`.
        scale: values of an integer depth file per unit.
        farthest: larger depths are ignored.
    """

    depth: bool = False
    ignore: int | None = 255
    first: int = 0
    known: dict[int, int] = field(default_factory=dict)
    scale: float = 1000.0
    farthest: float = float("inf")

    def read(self, file: str) -> np.ndarray:
        """Labels, int16 [H, W] with `IGNORED`, or depths, float32 [H, W] with 0 where a pixel is ignored.

        Raises:
            ValueError: says what is wrong with the file.
        """
        values = _values(Path(file))
        if self.depth:
            return self._depth(values)
        if values.dtype.kind == "f":
            raise ValueError(f"its values are {values.dtype}, expected integers: the numbers of classes")
        whole = values.astype(np.int64)
        if self.known:
            table = np.full(max(*self.known, int(whole.max())) + 1, IGNORED, np.int16)
            table[list(self.known)] = list(self.known.values())
            return np.where(whole >= 0, table[np.maximum(whole, 0)], np.int16(IGNORED))
        labels = whole - self.first
        labels[(whole < self.first) | (whole == self.ignore)] = IGNORED
        if labels.max() >= _MOST_CLASSES:
            raise ValueError(
                f"class {labels.max() + self.first}, expected less than {_MOST_CLASSES}; is it a picture of colours?"
            )
        return labels.astype(np.int16)

    def _depth(self, values: np.ndarray) -> np.ndarray:
        if values.dtype.kind == "f":
            depth = values.astype(np.float32)
        else:
            depth = values.astype(np.float32) / np.float32(self.scale)
        if not np.isfinite(depth).all():
            raise ValueError(f"{int((~np.isfinite(depth)).sum())} depths are NaN or infinite; write 0 where none is known")
        if (depth < 0).any():
            raise ValueError(f"a depth of {depth.min():g}; expected values from 0, where 0 stands for none")
        depth[depth > self.farthest] = 0
        return depth


def _values(file: Path) -> np.ndarray:
    """Numbers of a PNG without conversion of colours, or of a .npy file; [H, W]."""
    if file.suffix == ".npy":
        values = np.load(file, allow_pickle=False)
    else:
        with Image.open(file, formats=_TRUTH) as picture:
            if picture.mode not in ("1", "L", "P", "I", "F", "I;16", "I;16B", "I;16L"):
                raise ValueError(f"a picture of mode {picture.mode}, expected one channel of numbers")
            values = np.asarray(picture)
    if values.ndim != 2 or values.dtype.kind not in "buif":
        raise ValueError(f"{values.dtype} {list(values.shape)}, expected numbers [height, width]")
    return values


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
        looked.append(_check(option, parts[option].subset(world.share(len(images))), reading, source, threads, beat))
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
    return source.labels or {"segment": "masks", "depth": "depth"}[source.task]


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
    option: str, images: DenseImages, reading: Reading, source: Source, threads: int, beat: Callable[[], None]
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
        looked = []
        for one in pool.map(look, range(len(images.labels))):
            looked.append(one)
            beat()
    wrong = [(str(images.truth[at]), text) for at, (text, _, _) in enumerate(looked) if text]
    if wrong:
        raise UserError(f"{option}: {len(wrong)} of {len(looked)} files of labels cannot be used: {describe(wrong)}")
    return max((highest for _, highest, _ in looked), default=0), int(any(some for _, _, some in looked))
