"""`ijepa-ds data list`: write a list of images and labels from the files in which a data set publishes its labels."""

from __future__ import annotations

import argparse
import csv
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ijepa_ds.arguments import add_out
from ijepa_ds.data.list_text import check_utf8, text_of
from ijepa_ds.data.repeats import Row, check_repeats
from ijepa_ds.data.walk import is_image
from ijepa_ds.durable import write_text
from ijepa_ds.errors import UserError

logger = logging.getLogger(__name__)


def tiny_imagenet(root: Path) -> Iterator[Row]:
    """Yield the validation images of Tiny ImageNet with their classes.

    Args:
        root: tiny-imagenet-200, or its folder `val`.

    Raises:
        ValueError: A file is missing, or a line has no image and class.
    """
    file = _first("val_annotations.txt", root, root / "val")
    for number, line in enumerate(_text(file).splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 2 or not fields[0] or not fields[1]:
            raise UserError(f"{file}, line {number}: expected IMAGE, a tab and a class, found {line!r}")
        yield _row(number, file.parent / "images" / fields[0], fields[1])


def kaggle_imagenet(root: Path) -> Iterator[Row]:
    """Yield the validation images of ImageNet's Kaggle archive with their classes.

    Args:
        root: The folder that holds LOC_val_solution.csv and ILSVRC/Data/CLS-LOC/val.

    Raises:
        ValueError: A file is missing, or a line has no image and class.
    """
    file = _first("LOC_val_solution.csv", root)
    places = [root / "ILSVRC/Data/CLS-LOC/val", root / "Data/CLS-LOC/val", root / "val"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise UserError(f"{root} has no folder of validation images, expected {places[0]}")
    reader = csv.DictReader(_text(file).splitlines())
    if not {"ImageId", "PredictionString"} <= set(reader.fieldnames or ()):
        raise UserError(f"{file}, line 1: expected the columns ImageId and PredictionString, found {reader.fieldnames}")
    for row in reader:
        label = (row["PredictionString"] or "").split()
        if not row["ImageId"] or not label:
            raise UserError(f"{file}, line {reader.line_num}: expected an image and its class, found {row}")
        yield _row(reader.line_num, folder / f"{row['ImageId']}.JPEG", label[0])


LAYOUTS: dict[str, Callable[[Path], Iterator[Row]]] = {"tiny-imagenet": tiny_imagenet, "kaggle-imagenet": kaggle_imagenet}


def _row(line: int, image: Path, label: str) -> Row:
    return Row(line, os.fsencode(image), os.fsencode(label))


def _field(text: str) -> str:
    """A value of a comma-separated table."""
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if set(text) & set(' ,"\n\r') else text


def _first(name: str, *folders: Path) -> Path:
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folders[0]} has no {name}: give the folder of the data set")
    return file


def _text(file: Path) -> str:
    content = text_of(file, str(file))
    for number, line in enumerate(content.split(b"\n"), start=1):
        check_utf8(line, f"{file}, line {number}")
    return content.decode()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds data list`."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder of the data set")
    parser.add_argument("--layout", required=True, choices=tuple(LAYOUTS), help="how the data set stores its labels")
    add_out(parser, "list to write (.csv); give it to --test or data.source", metavar="LIST")


def run(args: argparse.Namespace) -> int:
    """Write the list; return 0.

    Raises:
        ValueError: The data set has another layout, images are missing, or an image has two classes.
    """
    if args.out.suffix != ".csv":
        raise UserError(f"--out {args.out}: a list with labels has the ending .csv")
    rows = list(LAYOUTS[args.layout](args.folder))
    check_repeats(lambda: rows, str(args.folder), os.fsencode(args.folder))
    lost = [os.fsdecode(row.name) for row in rows if not os.path.isfile(row.name)]
    if lost or not rows:
        raise UserError(
            f"{args.folder}: {len(lost)} of {len(rows)} images are missing" + (f", such as {lost[0]}" if lost else "")
        )
    named, folders = {row.name for row in rows}, {os.path.dirname(row.name) for row in rows}
    missed = [name for folder in folders for name in os.scandir(folder) if is_image(name.name) and name.path not in named]
    if missed:
        logger.warning(
            "%s: no label for %d images, such as %s: left out", args.folder, len(missed), os.fsdecode(missed[0].path)
        )
    relative = os.path.relpath  # the list and its images can be moved together
    lines = ["path,label"]
    for _, image, text in rows:
        name, label = relative(os.fsdecode(image), args.out.absolute().parent), os.fsdecode(text or b"")
        lines.append(f"{_field(name)},{_field(label)}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(args.out, "\n".join(lines) + "\n")
    logger.info("%s images, %s classes in %s", f"{len(rows):,}", f"{len({row.label for row in rows}):,}", args.out)
    return 0
