"""Where images and their files of labels lie: two folders, ADE20K, Pascal VOC 2012 and Cityscapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ijepa_ds.config.schema import EvalConfig
from ijepa_ds.errors import UserError

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
USUAL = {"segment": "masks", "depth": "depth"}  # folder of labels beside `images`, by task
_ARRAYS = (".npy", ".npz")  # images too, if data.arrays is set
_LABELS = (".png", ".npy", ".tif", ".tiff")
Files = tuple[list[str], list[str]]  # images, and the file of labels of each


def _pairs(option: str, images: Path, truth: Path, suffix: tuple[str, str] = ("", ""), arrays: bool = False) -> Files:
    """Images below one folder and files of labels below another, matched by relative name without ending."""
    for folder in (images, truth):
        if not folder.is_dir():
            raise UserError(f"{option}: there is no folder {folder}")

    def listed(folder: Path, kinds: tuple[str, ...], end: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in sorted(folder.rglob("*")):
            name = file.relative_to(folder).with_suffix("").as_posix()
            if file.suffix.lower() in kinds and name.endswith(end) and not file.name.startswith("."):
                key = name[: len(name) - len(end)]
                if key in found:
                    raise UserError(f"{option}: two files for one image: {found[key]} and {file}")
                found[key] = str(file)
        return found

    pictures, masks = listed(images, (*_IMAGES, *(_ARRAYS if arrays else ())), suffix[0]), listed(truth, _LABELS, suffix[1])
    if not pictures:
        raise UserError(f"{option}: no images in {images}")
    lost = [pictures[name] for name in pictures if name not in masks]
    if lost:
        raise UserError(f"{option}: {len(lost)} of {len(pictures)} images have no file of labels in {truth}, such as {lost[0]}")
    return list(pictures.values()), [masks[name] for name in pictures]


def _folders(option: str, root: Path, labels: str, train: bool, arrays: bool) -> Files:
    return _pairs(option, root / "images", root / labels, arrays=arrays)


def _ade20k(option: str, root: Path, labels: str, train: bool, arrays: bool) -> Files:
    part = "training" if train else "validation"
    return _pairs(option, root / "images" / part, root / "annotations" / part)


def _voc2012(option: str, root: Path, labels: str, train: bool, arrays: bool) -> Files:
    listed = root / "ImageSets" / "Segmentation" / ("train.txt" if train else "val.txt")
    if not listed.is_file():
        raise UserError(f"{option}: there is no {listed}; give the folder VOC2012")
    names = listed.read_text(encoding="utf-8").split()
    pairs = [(root / "JPEGImages" / f"{name}.jpg", root / "SegmentationClass" / f"{name}.png") for name in names]
    lost = [file for pair in pairs for file in pair if not file.is_file()]
    if lost or not pairs:
        raise UserError(f"{option}: {len(lost)} of the files that {listed} names are not there, such as {lost[:1]}")
    return [str(image) for image, _ in pairs], [str(mask) for _, mask in pairs]


def _cityscapes(option: str, root: Path, labels: str, train: bool, arrays: bool) -> Files:
    part = "train" if train else "val"
    return _pairs(option, root / "leftImg8bit" / part, root / "gtFine" / part, ("_leftImg8bit", "_gtFine_labelIds"))


_FINDERS: dict[str, Callable[[str, Path, str, bool, bool], Files]] = {
    "folders": _folders,
    "ade20k": _ade20k,
    "voc2012": _voc2012,
    "cityscapes": _cityscapes,
}


def listed(cfg: EvalConfig, arrays: bool) -> str:
    """List the images of a run's own evaluation of segment or depth, whose labels only a start reads.

    Args:
        cfg: of the run.
        arrays: as in `find`.

    Returns:
        how many images there are.

    Raises:
        UserError: names what is missing.
    """
    labels, counts = cfg.labels or USUAL[cfg.task], []
    for key, source in (("eval.train", cfg.train), ("eval.test", cfg.test)):
        images, _ = find("folders", key, Path(str(source)), labels, key == "eval.train", arrays)
        counts.append(f"{key}: {len(images):,} images with {labels}")
    return "; ".join(counts)


def find(layout: str, option: str, root: Path, labels: str, train: bool, arrays: bool = False) -> Files:
    """Find the images of a source and the file of labels of each.

    Args:
        layout: of `options.evals.LAYOUTS`.
        option: that names the source in messages.
        root: folder.
        labels: folder of the labels beside `images`, of the layout `folders`.
        train: the training images, in layouts that have both.
        arrays: NumPy files in `images` are images, of the layout `folders`.

    Raises:
        UserError: names what is missing.
    """
    return _FINDERS[layout](option, root, labels, train, arrays)
