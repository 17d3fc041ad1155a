"""Checked values of a ladder file with file and line; all problems are collected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ijepa_ds.config.build import suggest
from ijepa_ds.config.yaml_tree import Item

# kind -> expected value in messages
KINDS = {
    "text": "text",
    "texts": "a list of texts",
    "count": "a whole number above 0",
    "share": "a number from 0 to below 1",
}


def take(item: Item, name: str, known: Mapping[str, str], required: Sequence[str], problems: list[str]) -> dict[str, Any]:
    """Return the valid values of a section.

    Args:
        item: the section.
        name: its dotted name, for messages.
        known: key -> kind, a key of `KINDS`.
        required: required keys.
        problems: a line is added for every unknown key, wrong value and missing key.
    """
    entries = item.section
    if entries is None:
        problems.append(f"{item.where}: {name}: expected a section with the keys {', '.join(known)}")
        return {}
    values = {}
    for key, entry in entries.items():
        if key not in known:
            guess = suggest(key, known) or f" (known here: {', '.join(known)})"
            problems.append(f"{entry.where}: {name}.{key}: unknown key{guess}")
        elif entry.value is None and key not in required:
            continue
        elif not _is(known[key], entry.value):
            problems.append(f"{entry.where}: {name}.{key}: expected {KINDS[known[key]]}, found {_shown(entry.value)}")
        else:
            values[key] = entry.value
    problems += [f"{item.where}: {name}.{key}: missing" for key in required if key not in entries]
    return values


def _is(kind: str, value: Any) -> bool:
    if kind == "text":
        return isinstance(value, str) and bool(value.strip())
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    if isinstance(value, bool):
        return False
    if kind == "count":
        return isinstance(value, int) and value > 0
    return isinstance(value, int | float) and 0 <= value < 1


def _shown(value: Any) -> str:
    return "a section" if isinstance(value, dict) else repr(value)


def place(item: Item, *names: str) -> str:
    """File and line of a value, or of the innermost section around it."""
    for name in names:
        entries = item.section or {}
        if name not in entries:
            break
        item = entries[name]
    return item.where
