"""Images of an evaluation that cannot be read: named, and left out of the scores."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch.distributed as dist

from ijepa_ds.data.index import describe
from ijepa_ds.data.transforms import UNREADABLE, UnreadableError, read_layers
from ijepa_ds.data.values import Values
from ijepa_ds.evals.folders import Labelled, Pair
from ijepa_ds.evals.ranks import ALONE, World
from ijepa_ds.terminal import Bar

logger = logging.getLogger(__name__)
_WINDOW = 256  # images in flight


def names_unreadable(error: BaseException) -> bool:
    """Whether an error, perhaps of another rank, is about an image that cannot be read."""
    return isinstance(error, UnreadableError) or UNREADABLE in str(error)


def find_unreadable(
    paths: Sequence[str],
    positions: Sequence[int],
    threads: int,
    max_pixels: int,
    values: Values | None = None,
    progress: str | None = None,
) -> dict[int, str]:
    """Decode the images at some positions.

    Args:
        paths: of all images.
        positions: of those to decode.
        threads: that decode.
        max_pixels: larger images cannot be read.
        values: how they become channels; None: as their source says, else RGB.
        progress: label of the progress bar; None: no bar.

    Returns:
        position -> error of those that cannot be read.
    """

    def look(position: int) -> str:
        try:
            read_layers(paths[position], max_pixels, values)
        except UnreadableError as error:
            return str(error)
        return ""

    found: dict[int, str] = {}
    left = iter(positions)
    bar = Bar(progress or "", len(positions), "images", show=progress is not None)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool, bar:
        while window := list(itertools.islice(left, _WINDOW)):
            found.update((at, text) for at, text in zip(window, pool.map(look, window), strict=True) if text)
            bar.update(len(window))
    return found


def without(images: Labelled, left_out: Iterable[int]) -> Labelled:
    """The images without those at some positions."""
    return images.subset(np.delete(np.arange(len(images.labels)), sorted(left_out)).tolist())


def without_unreadable(pair: Pair, threads: int, max_pixels: int, world: World = ALONE, values: Values | None = None) -> Pair:
    """Decode all images, and leave out those that cannot be read; every rank calls it and gets the same.

    Args:
        pair: the images.
        threads: of this rank.
        max_pixels: larger images cannot be read.
        world: the ranks that share the work.
        values: as in `find_unreadable`.

    Raises:
        ValueError: no image is left in a part.
    """
    parts, notes = {}, []
    for option, images in (("train", pair.train), ("test", pair.test)):
        label = f"--{option}, decoding" if world.rank == 0 else None
        mine = find_unreadable(images.paths, world.share(len(images.labels)), threads, max_pixels, values, label)
        shares: list[dict[int, str]] = [mine]
        if world.size > 1:
            shares = [{} for _ in range(world.size)]
            dist.all_gather_object(shares, mine)
        found = {position: text for share in shares for position, text in share.items()}
        listed = describe([(str(images.paths[at]), text.rpartition(": ")[2]) for at, text in sorted(found.items())])
        if len(found) == len(images.labels):
            raise ValueError(f"--{option}: none of its {len(found)} images can be read: {listed}")
        parts[option] = without(images, found) if found else images
        if found:
            notes.append(f"--{option}: {len(found)} images cannot be read and are left out: {listed}")
    return replace(pair, train=parts["train"], test=parts["test"], notes=(*pair.notes, *notes))
