"""Mixes: several sources in one index, with weights."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

from ijepa_ds.config import paths
from ijepa_ds.data.index import ImageIndex, build_index
from ijepa_ds.data.index_file import Part
from ijepa_ds.errors import UserError


def read_mix(path: str, source: str) -> list[tuple[str, float | None]]:
    """Read a mix: a YAML file whose key `sources` lists a `source`, relative to the file, and a `weight` each.

    Args:
        path: The YAML file.
        source: Its name in messages.

    Returns:
        Path and weight of every source; either all or none have a weight. Variables and `~` are expanded.

    Raises:
        ValueError: The file is not a valid mix, or a path holds a placeholder or a variable that is not set.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"data.source: {source!r} is not valid YAML: {error}") from error
    rows = content.get("sources") if isinstance(content, dict) and set(content) == {"sources"} else None
    if not isinstance(rows, list) or not rows or not all(_is_row(row) for row in rows):
        raise UserError(
            f"data.source: {source!r}: expected `sources:` with a list of `source: NAME` and `weight: a number above 0`"
        )
    weights = [row.get("weight") for row in rows]
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        raise UserError(f"data.source: {source!r}: give every source a weight, or none")
    folder = os.path.dirname(os.path.abspath(path))
    expanded = [paths.expand(row["source"], os.environ) for row in rows]
    wrong = [
        f"data.source: {source!r}: source {number}: {problem}" for number, (_, problem) in enumerate(expanded, 1) if problem
    ]
    if wrong:
        raise UserError("\n".join(wrong))
    return [(os.path.join(folder, name), weight) for (name, _), weight in zip(expanded, weights, strict=True)]


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not set(row) <= {"source", "weight"} or not isinstance(row.get("source"), str):
        return False
    weight = row.get("weight", 1)
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < float("inf")


def concatenate(indices: Iterable[tuple[ImageIndex, str, float | None]], source: str) -> ImageIndex:
    """Concatenate the indices of several sources; classes are matched by name.

    Args:
        indices: Index, name and weight of every source.
        source: Name of the result.

    Raises:
        ValueError: A source is a mix with weights, and the sources here have none.
    """
    given = list(indices)
    classes = tuple(sorted({name for index, _, _ in given for name in index.classes}))
    number = {name: label for label, name in enumerate(classes)}
    tables, first_name, first_container, position = [], 0, 0, 0
    bad: dict[int, str] = {}
    for index, _, _ in given:
        table = np.array(index.entries)
        table["name"] += first_name
        table["container"] += first_container
        renumber = np.array([*(number[name] for name in index.classes), -1], dtype=np.int32)
        table["label"] = renumber[table["label"]]
        bad |= {position + at: reason for at, reason in index.bad.items()}
        tables.append(table)
        first_name, first_container = first_name + len(index.names), first_container + len(index.containers)
        position += len(table)
    return build_index(
        source=source,
        entries=np.concatenate(tables),
        names=np.concatenate([index.names for index, _, _ in given]),
        containers=tuple(container for index, _, _ in given for container in index.containers),
        classes=classes,
        bad=bad,
        problems=tuple(problem for index, _, _ in given for problem in index.problems),
        parts=tuple(part for index, name, weight in given for part in _parts(index, name, weight, source)),
    )


def _parts(index: ImageIndex, name: str, weight: float | None, source: str) -> list[Part]:
    """One part for a source, or all parts of a source that is itself a mix with weights: the weights multiply."""
    inner = [part.weight for part in index.parts if part.weight is not None]
    if not inner:
        return [Part(name, len(index), weight)]
    if weight is None:
        raise UserError(f"data.source: {source!r}: {name!r} is a mix with weights: give every source a weight here, too")
    return [Part(part.source, part.count, weight * (part.weight or 0.0) / sum(inner)) for part in index.parts]
