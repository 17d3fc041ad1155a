"""From written values to a `Config`: pydantic checks names, types and ranges; each problem becomes one plain sentence."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ijepa_ds.config.schema import Config, Problem

_REQUIRED = {  # used where a required key is missing or wrong, so that the rest can still be checked
    "run": {"dir": "."},
    "data": {"source": "."},
    "model": {"name": "tiny"},
    "optimization": {"batch_size": 1},
}
_RANGE = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "value_error"}
_TYPES = {"string": "text", "integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}


@functools.cache
def _adapter() -> TypeAdapter[Config]:
    return TypeAdapter(Config)  # not at import: it takes some 50 ms


@functools.cache
def json_schema() -> dict[str, Any]:
    """The JSON schema of a run's YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_adapter().json_schema()}


@functools.cache
def nodes() -> dict[str, dict[str, Any]]:
    """The JSON schema of every dotted key."""

    def walk(node: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, dict[str, Any]]]:
        for name, inner in node["properties"].items():
            if "$ref" in inner:
                yield from walk(json_schema()["$defs"][inner["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            else:
                yield prefix + name, inner

    return dict(walk(json_schema(), ""))


def build(values: Mapping[str, Any]) -> tuple[Config, list[Problem]]:
    """Fill the schema.

    Args:
        values: nested dictionaries of plain values.

    Returns:
        The configuration and the problems; a key with a problem has its default, or a placeholder if it is required.
    """
    given = _with_sections(Config, values)
    try:
        return _adapter().validate_python(given), []
    except ValidationError as error:
        found: dict[str, Problem] = {}
        for entry in error.errors(include_url=False):
            names = [part for part in entry["loc"] if isinstance(part, str)]  # numbers are positions in a list
            key = ".".join(names)
            found.setdefault(key, Problem((key,), _text(entry["type"], entry["loc"], _value(given, names))))
    usable = _without(given, found)
    for section, placeholders in _REQUIRED.items():
        usable[section] = placeholders | usable.get(section, {})
    return _adapter().validate_python(usable), list(found.values())


def _with_sections(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with an empty dictionary for every section that is missing or empty."""
    filled = dict(values)
    for name, hint in get_type_hints(cls).items():
        if is_dataclass(hint):
            inner = {} if values.get(name) is None else values[name]
            filled[name] = _with_sections(hint, inner) if isinstance(inner, Mapping) else inner
    return filled


def _without(values: Mapping[str, Any], wrong: Iterable[str], prefix: str = "") -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if prefix + name not in wrong}
    return {n: _without(v, wrong, f"{prefix}{n}.") if isinstance(v, Mapping) else v for n, v in kept.items()}


def _value(values: Any, names: Iterable[str]) -> Any:
    for name in names:
        values = values.get(name)
    return values


# what other projects call a key
_ELSEWHERE = {"learning_rate": "lr", "base_lr": "lr", "wd": "weight_decay", "num_epochs": "epochs", "max_steps": "steps"}


def suggest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'lr'?"`, or nothing when no known name is close."""
    names = list(known)
    close = [own for other, own in _ELSEWHERE.items() if other == name and own in names]
    close = close or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _text(kind: str, place: tuple[int | str, ...], value: Any) -> str:
    """What is wrong with a value, from pydantic's type of error and its place."""
    key = ".".join(part for part in place if isinstance(part, str))
    if kind == "unexpected_keyword_argument":
        return _unknown(key)
    if key not in nodes():
        return f"expected a section with keys, found {_found(value)}"
    node = nodes()[key]
    if kind == "missing" and place[-1] == key.rpartition(".")[2]:
        return f"missing; it has no default, expected {expected(node)}"
    if kind == "string_pattern_mismatch":
        return f"is empty; name a folder or file{', or null' if 'anyOf' in node else ''}"
    if kind == "literal_error" and isinstance(value, str):
        return f"'{value}' is not known{suggest(value, node['enum'])} (one of: {', '.join(node['enum'])})"
    if kind in _RANGE:
        shown = f"[{', '.join(map(str, value))}]" if isinstance(value, (list, tuple)) else value
        return f"must be {bounds(node)}, got {shown}"
    quotes = "; put it in quotes" if node.get("type") == "string" and not isinstance(value, (list, dict, type(None))) else ""
    return f"expected {expected(node)}, found {_found(value)}{quotes}{_hint(value, _kinds(node))}"


def _kinds(node: Mapping[str, Any]) -> set[str]:
    """The types in a key's JSON schema, those of its items included."""
    inner = [*node.get("anyOf", ()), *node.get("prefixItems", ()), *([node["items"]] if "items" in node else [])]
    return {node.get("type", "")}.union(*map(_kinds, inner))


def _hint(value: Any, kinds: set[str]) -> str:
    """What a text that should be a number was meant to be, as far as its form tells.

    Args:
        value: as found.
        kinds: the types that are expected.
    """
    texts = (
        [value] if isinstance(value, str) else [one for one in value if isinstance(one, str)] if isinstance(value, list) else []
    )
    for text in texts:
        if re.fullmatch(r"[+-]?\d+,\d*(e[+-]?\d+)?", text, re.IGNORECASE):
            ways = [text.replace(",", ".", 1)] if "number" in kinds else []
            if not re.match(r"[+-]?0", text) and re.search(r",\d{3}$", text):
                ways.append(text.replace(",", "", 1))
            return f"; a comma is no decimal point: write {' or '.join(ways) or 'digits only'}"
        if re.fullmatch(r"[\d.,_e\s\u2010-\u2015\u2212+-]+", text) and re.search(r"[\u2010-\u2015\u2212]", text):
            return "; its minus sign is another character than '-': type it again"
        if re.fullmatch(r"[+-]?[\d.]+\s*%", text):
            return "; write the share as a number, such as 0.05 for 5 %"
        if re.fullmatch(r"[+-]?[\d.]+\s*[kKmMgG][bB]?", text):
            return "; units are not read: write the number out"
    return ""


def _unknown(key: str) -> str:
    section, dot, name = key.rpartition(".")
    kind, prefix = ("unknown key" if section else "unknown section"), section + dot
    here = dict.fromkeys(known.removeprefix(prefix).partition(".")[0] for known in nodes() if known.startswith(prefix))
    homes = [known.rpartition(".")[0] for known in nodes() if known.rpartition(".")[2] == name]
    if homes:
        return f"{kind}; '{name}' belongs in '{homes[0]}'"
    return kind + (suggest(name, here) or f"; remove it (known here: {', '.join(here)})")


def expected(node: Mapping[str, Any]) -> str:
    """The type that a key's JSON schema asks for."""
    if "anyOf" in node:
        return " or ".join(map(expected, node["anyOf"]))
    if node.get("ascending"):
        return f"a list [a, b, ...], each {_TYPES[node['items']['type']]}"
    if node.get("several"):
        return f"a list of numbers, [a, b, ...], each {_TYPES[node['items']['type']]}"
    if node["type"] == "array":
        return f"a list of {node['minItems']} numbers, [{', '.join('abcd'[: node['minItems']])}]"
    return _TYPES[node["type"]]


def bounds(node: Mapping[str, Any]) -> str:
    """The range that a key's JSON schema asks for, such as "at least 0 and below 1"; empty if there is none."""
    if "anyOf" in node:
        return bounds(node["anyOf"][0])
    if node.get("ascending"):
        return f"{bounds(node['items'])} and ascending"
    if node.get("several"):
        return bounds(node["items"])
    if "prefixItems" in node:
        first, last = node["prefixItems"][0], node["prefixItems"][-1]
        if not node.get("ordered"):
            return bounds(first) + (f", the last {bounds(last)}" if bounds(last) != bounds(first) else "")
        low = f"{first['minimum']:g} <=" if "minimum" in first else f"{first['exclusiveMinimum']:g} <"
        return f"a pair [a, b] with {low} a <= b" + (f" <= {first['maximum']:g}" if "maximum" in first else "")
    if "minimum" in node and "maximum" in node:
        return f"from {node['minimum']:g} to {node['maximum']:g}"
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    plain = " and ".join(f"{text} {node[name]:g}" for name, text in words.items() if name in node)
    return f"{plain}, and whole from 1 on" if node.get("whole") else plain


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section"
    kind = {bool: "true/false", int: "whole number", float: "number", str: "text", list: "list"}
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({kind.get(type(value), type(value).__name__)})"
