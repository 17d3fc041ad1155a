"""From a tree of written values to the dataclasses of the schema: names, presence and types."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from ijepa_ds.config.schema import Config
from ijepa_ds.config.yaml_tree import Item

# For what is missing, so that the rest can still be checked.
_PLACEHOLDERS = {str: "", int: 1, float: 1.0, bool: False}
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class _WrongTypeError(Exception):
    """A value of the wrong type; the text says what was expected and found."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'lr'?"`, or nothing when no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def build(root: Item) -> tuple[Config, list[str], set[str]]:
    """Fill the schema from a tree.

    Returns:
        The configuration, the problems found (one line each) and the dotted keys that could not be filled;
        these hold the schema's default, or a placeholder, and say nothing about the run.
    """
    problems: list[str] = []
    unusable: set[str] = set()
    return _build(Config, root, "", problems, unusable), problems, unusable


def _build(cls: Any, item: Item, prefix: str, problems: list[str], unusable: set[str]) -> Any:
    entries = item.section
    if entries is None:
        name = prefix[:-1]
        problems.append(f"{item.where}: {name}: expected a section with keys, found {_found(item.value)}")
        unusable.add(name)
        entries, silent = {}, True
    else:
        silent = False
    hints = get_type_hints(cls)
    for name in entries:
        if name not in hints:
            problems.append(f"{entries[name].where}: {prefix}{name}: {_unknown(name, hints, prefix)}")
    values: dict[str, Any] = {}
    for spec in fields(cls):
        hint, key = hints[spec.name], prefix + spec.name
        required = spec.default is MISSING and spec.default_factory is MISSING
        if is_dataclass(hint):
            inner = entries.get(spec.name, Item({}, item.where))
            values[spec.name] = _build(hint, inner, key + ".", problems, unusable)
            continue
        if spec.name in entries:
            try:
                values[spec.name] = _convert(hint, entries[spec.name].value)
                continue
            except _WrongTypeError as error:
                problems.append(f"{entries[spec.name].where}: {key}: {error}")
        elif not required:
            continue
        elif not silent:
            problems.append(f"{item.where}: {key}: missing; it has no default, expected {_expected(hint)}")
        unusable.add(key)
        if required:
            values[spec.name] = _PLACEHOLDERS[hint]
    return cls(**values)


def _unknown(name: str, hints: dict[str, Any], prefix: str) -> str:
    kind = "unknown key" if prefix else "unknown section"
    guess = suggest(name, hints)
    if guess:
        return kind + guess
    homes = [home for home, known in _sections(Config, "").items() if name in known]
    if homes:
        return f"{kind}; '{name}' belongs in '{homes[0]}'"
    return f"{kind}; remove it (known here: {', '.join(hints)})"


def _sections(cls: Any, prefix: str) -> dict[str, set[str]]:
    """The keys of every section under its dotted name."""
    hints = get_type_hints(cls)
    found = {prefix: {name for name, hint in hints.items() if not is_dataclass(hint)}} if prefix else {}
    for name, hint in hints.items():
        if is_dataclass(hint):
            found |= _sections(hint, f"{prefix}.{name}" if prefix else name)
    return found


def _convert(hint: Any, value: Any) -> Any:
    """`value` as the type `hint`, or `_WrongTypeError`."""
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (arm for arm in get_args(hint) if arm is not type(None))
        return None if value is None else _convert(inner, value)
    if get_origin(hint) is tuple:
        arms = get_args(hint)
        if not isinstance(value, list) or len(value) != len(arms):
            raise _WrongTypeError(f"expected {_expected(hint)}, found {_found(value)}")
        return tuple(_convert(arm, part) for arm, part in zip(arms, value, strict=True))
    if hint is float:
        return _number(value)
    # bool is an int to Python, never to a reader
    if isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    quotes = "; put it in quotes" if hint is str and not isinstance(value, (list, dict, type(None))) else ""
    raise _WrongTypeError(f"expected {_expected(hint)}, found {_found(value)}{quotes}")


def _number(value: Any) -> float:
    """A finite float; YAML 1.1 reads 1e-3, having no dot, as text."""
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            pass
        else:
            if math.isfinite(number):
                return number
    raise _WrongTypeError(f"expected {_NAMES[float]}, found {_found(value)}")


def _expected(hint: Any) -> str:
    if get_origin(hint) is tuple:
        count = len(get_args(hint))
        return f"a list of {count} numbers, [{', '.join('abc'[:count])}]"
    if get_origin(hint) in (Union, types.UnionType):
        return " or null".join(_expected(arm) for arm in get_args(hint) if arm is not type(None)) + " or null"
    return _NAMES[hint]


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    kind = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list"}
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind.get(type(value), type(value).__name__)})"
