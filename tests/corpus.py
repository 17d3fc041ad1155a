"""Whether scan, check and both loaders agree on every image of a tree: `python -m tests.corpus DIR ...`.

Prints every disagreement by kind, and exits 1 if there is one. Pillow's decoding (`ijepa_ds.data.pillow`) is right.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ijepa_ds.data.dali_one import DaliDecoder, failure
from ijepa_ds.data.headers import inspect
from ijepa_ds.data.jpeg_check import jpeg_damage
from ijepa_ds.data.jpeg_scan import has_stray_marker
from ijepa_ds.data.judge import difference
from ijepa_ds.data.pillow import MAX_PIXELS, decode

DISAGREEMENTS = (
    "scan refuses, Pillow decodes",
    "Pillow refuses, the DALI loader decodes",
    "the DALI loader has other pixels",
)
NOTES = (
    "agree: readable",
    "agree: unreadable by the header",
    "agree: unreadable, found by decoding only",
    "agree: readable with damaged pixels, named by data check",
    "agree: DALI fails, so its loader uses Pillow",
    "agree: Pillow in both loaders, by the header",
    "agree: Pillow in both loaders, by a marker inside the pixels",
)


def judged(content: bytes, path: Path, dali: DaliDecoder, max_pixels: int) -> tuple[str, str]:
    """The kind of agreement or disagreement about a file, and a reason."""
    try:
        header, refused = inspect(path.open("rb"), len(content), max_pixels), ""
    except ValueError as error:
        header, refused = None, str(error)
    try:
        right: np.ndarray | None = np.asarray(decode(content, max_pixels))
        wrong = ""
    except ValueError as error:
        right, wrong = None, str(error)
    if header is None:
        return (DISAGREEMENTS[0], refused) if right is not None else (NOTES[1], refused)
    if header.by_pillow:
        return (NOTES[5], "") if right is not None else (NOTES[2], wrong)
    if has_stray_marker(content):
        return (NOTES[6], "") if right is not None else (NOTES[2], wrong)
    try:
        pixels = dali.decode(content)
    except RuntimeError as error:
        return (NOTES[4], failure(error)) if right is not None else (NOTES[2], wrong)
    if right is None:
        return DISAGREEMENTS[1], wrong
    apart, damage = difference(pixels, right), jpeg_damage(content)
    if apart:
        return DISAGREEMENTS[2], apart + (f"; damaged: {damage}" if damage else "")
    return (NOTES[3], damage) if damage else (NOTES[0], "")


def files(roots: list[Path]) -> Iterator[Path]:
    """All files below the folders, in order."""
    for root in roots:
        yield from (path for path in sorted(root.rglob("*")) if path.is_file())


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what the decoders' C libraries print about damaged files."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def main(argv: list[str] | None = None) -> int:
    """Judge every file; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS)
    parser.add_argument("--all", action="store_true", help="list the files on which all agree too")
    args = parser.parse_args(argv)
    found: dict[str, list[tuple[Path, str]]] = collections.defaultdict(list)
    dali = DaliDecoder()
    for path in files(args.folders):
        with quiet():
            kind, reason = judged(path.read_bytes(), path, dali, args.max_pixels)
        found[kind].append((path, reason))
    for kind in (*DISAGREEMENTS, *NOTES):
        listed = found[kind] if args.all or kind in DISAGREEMENTS else []
        print(f"{len(found[kind]):>6}  {kind}")
        for path, reason in listed:
            print(f"          {str(path)!r}: {reason}")
    return 1 if any(found[kind] for kind in DISAGREEMENTS) else 0


if __name__ == "__main__":
    sys.exit(main())
