"""The rule for classes, one for folders, tars, shards and lists (docs/data.md, "Classes").

1. The label of a list, if it has a column of labels.
2. Else the content of `NAME.cls` beside the image, as in WebDataset.
3. Else the path of the folders between the source and the image, or the part of it that `data.class_level` chooses.
4. Else none.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.list_text import check_utf8
from ijepa_ds.errors import UserError

SIDECAR = b".cls"
LONGEST = 1024  # bytes of a class name
_EXAMPLES = 3


def class_of(name: bytes, level: int | None) -> bytes | None:
    """Return the class of an image from its path below the source; None: it lies in no folder.

    Args:
        name: Such as `a/abbey/1.jpg`.
        level: None: the whole path of folders; n: the first n folders; -n: the last n.

    Raises:
        ValueError: The image has fewer folders than `level` asks for.
    """
    folders = name.split(b"/")[:-1]
    if not folders or b".." in folders or not folders[0]:
        return None
    if level is not None and len(folders) < abs(level):
        raise UserError(
            f"data.class_level (--class-level) is {level}, but {os.fsdecode(name)!r} lies in {len(folders)} folders only: "
            "choose a smaller level, or remove the images that do not belong to the data set"
        )
    chosen = folders if level is None else folders[:level] if level > 0 else folders[level:]
    return b"/".join(chosen)


def sidecar_of(name: bytes, sidecars: Mapping[bytes, bytes]) -> bytes | None:
    """Return the value for an image's `NAME.cls`; of several names with dots, the longest that fits.

    Args:
        name: `x1.0.jpg` belongs to `x1.0.cls`, else to `x1.cls`.
        sidecars: Name without `.cls` -> value.
    """
    if not sidecars:
        return None
    folder, slash, last = name.rpartition(b"/")
    parts = last.split(b".")
    stems = (folder + slash + b".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1))
    return next((sidecars[stem] for stem in stems if stem in sidecars), None)


def class_text(content: bytes, where: str) -> bytes:
    """Return the class that a `.cls` file holds; `where` is its name in messages.

    Raises:
        ValueError: It is empty, is not one line, or is not UTF-8.
    """
    text = content.removeprefix(b"\xef\xbb\xbf").strip()
    if not text or len(text) > LONGEST or any(byte < 32 for byte in text):
        raise UserError(f"data.source: {where} must hold the class of its image, one line of text; found {text[:40]!r}")
    check_utf8(text, f"data.source: {where}")
    return text


def describe_classes(index: ImageIndex) -> str:
    """Return the number of classes with examples, the number of images without a class, and a hint if a level seems wrong."""
    names, without = index.classes, int((index.labels < 0).sum())
    tars = [container.path for container in index.containers if container.fingerprint and not container.column]
    unpack = "; neither a tar's name nor a folder above it is a class: unpack each tar into a folder of its class"
    if not names:
        unpack = unpack if len(tars) > 1 else ""
        return f"0 classes: the images lie in no folder and have no labels{unpack}"
    shown = ", ".join(names[:_EXAMPLES]) + (", ..." if len(names) > _EXAMPLES else "")
    text = f"{len(names):,} classes, such as {shown}" if len(names) > 1 else f"1 class, {shown}"
    if without:
        text += f"; {without:,} images have no class"
    if len({os.path.dirname(path) for path in tars}) > 1:
        text += unpack
    if same := alike(names):
        text += f"; {' and '.join(map(repr, same))} are different classes, although they look alike"
    advice = hint(names)
    return text + (f" ({advice})" if advice else "")


def alike(names: Sequence[str]) -> tuple[str, ...]:
    """Return the first classes that differ only in case, blanks, or the form of a number (`1`, `01`, `1.0`); () if none do."""
    seen: dict[str, str] = {}
    for name in names:
        plain = " ".join(name.split()).casefold()
        plain = plain.removesuffix(".0").lstrip("0") if re.fullmatch(r"\d+(\.0)?", plain) else plain
        if plain in seen:
            return seen[plain], name
        seen[plain] = name
    return ()


def hint(names: Sequence[str]) -> str:
    """Return advice where the folders of the classes look like another layout; empty if there is none."""
    paths = [name.split("/") for name in names]
    if len(names) < 2 or min(map(len, paths)) < 2:
        return "" if len(names) != 1 else "a single class: is the source a folder too deep, or too high?"
    level = min(map(len, paths)) - 1
    advice = f"leave it out with data.class_level={level} (--class-level {level})"
    if len({path[-1] for path in paths}) == 1:
        return f"every class ends in the folder {paths[0][-1]!r}: {advice}"
    if len({path[0] for path in paths}) == 1:
        return f"every class is below {paths[0][0]!r}: make it the source, or see data.class_level (--class-level)"
    children = Counter(parent for parent, _ in {(tuple(path[:n]), path[n]) for path in paths for n in range(len(path))})
    if all(children[tuple(path[:-1])] == 1 for path in paths):
        return f"every class is the only folder in its parent: {advice}"
    return ""
