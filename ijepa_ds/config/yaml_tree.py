"""YAML and command-line overrides as a tree of values that know where they were written.

Safe types only. A duplicated key, a foreign tag and a syntax error are refused with their line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ijepa_ds.config.schema import ConfigError

_MAX_DEPTH = 8  # sections in sections; an alias that contains itself would have no end


@dataclass(frozen=True)
class Item:
    """One value and its place.

    Attributes:
        value: a scalar, a list of plain values, None, or `dict[str, Item]` for a section.
        where: "run.yaml:12" or "override data.source=...".
    """

    value: Any
    where: str

    @property
    def section(self) -> dict[str, Item] | None:
        """The entries if this is a section (an empty one may be written as nothing at all), else None."""
        if self.value is None:
            return {}
        return self.value if isinstance(self.value, dict) else None


def read(path: Path) -> tuple[Item, list[str]]:
    """The tree of a YAML file and the problems found on the way (duplicate keys, unreadable values).

    Raises:
        ConfigError: the file is missing, is not text, is not YAML, or has no `key: value` at its top.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})"]) from error
    return parse(text, str(path))


def parse(text: str, label: str) -> tuple[Item, list[str]]:
    """The same for a text; `label` stands in front of the line numbers.

    Raises:
        ConfigError: the text is not YAML, or not a mapping.
    """
    try:
        return _parse(text, label)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f"{label}:{mark.line + 1}" if mark else label
        raise ConfigError([f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}"]) from error


def _parse(text: str, label: str) -> tuple[Item, list[str]]:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Item({}, label), []
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError([f"{label}: expected sections such as 'data:' at the top, found {node.id}"])  # type: ignore[attr-defined]
        problems: list[str] = []
        root = _convert(loader, node, label, label, "", problems)
    finally:
        loader.dispose()
    return root, problems


def _convert(loader: yaml.SafeLoader, node: yaml.Node, label: str, where: str, key: str, problems: list[str]) -> Item:
    """`node` as an item; `key` is its dotted name."""
    if not isinstance(node, yaml.MappingNode):
        try:
            return Item(loader.construct_object(node, deep=True), where)
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{where}: {key}: cannot be read: {getattr(error, 'problem', None) or error}")
            return Item(None, where)
    if key.count(".") >= _MAX_DEPTH:
        problems.append(f"{where}: {key}: nested too deep")
        return Item(None, where)
    entries: dict[str, Item] = {}
    for key_node, value_node in node.value:
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else f"<{key_node.id}>"
        here = f"{label}:{key_node.start_mark.line + 1}"
        dotted = f"{key}.{name}" if key else name
        item = _convert(loader, value_node, label, here, dotted, problems)
        if name in entries:
            problems.append(f"{here}: {dotted}: already given at {entries[name].where}; remove one of them")
        else:
            entries[name] = item
    return Item(entries, where)


def apply_overrides(root: Item, overrides: Sequence[str]) -> list[str]:
    """Put `section.key=value` texts into the tree, in place; the last one wins, over the file too.

    Returns:
        Problems, one line each.
    """
    problems = []
    for text in overrides:
        where = f"override {text}"
        dotted, equals, written = text.partition("=")
        names = dotted.strip().split(".")
        if not equals or not all(names):
            problems.append(f"{where}: expected section.key=value, such as optimization.lr=1e-3")
            continue
        try:
            value = yaml.safe_load(written)
        except (yaml.YAMLError, ValueError):
            problems.append(f"{where}: the value is not valid YAML; put it in quotes: {dotted}='\"...\"'")
            continue
        if isinstance(value, dict):
            problems.append(f"{where}: a whole section; override single keys, such as {dotted}.key=value")
            continue
        problems += _put(root, names, Item(value, where))
    return problems


def _put(root: Item, names: Sequence[str], item: Item) -> list[str]:
    entries = root.value
    for depth, name in enumerate(names[:-1], start=1):
        inner = entries.get(name, Item({}, item.where))
        section = inner.section
        if section is None:
            single = ".".join(names[:depth])
            return [f"{item.where}: {single} is a single value ({inner.where}), it has no keys"]
        entries[name] = Item(section, inner.where)
        entries = section
    old = entries.get(names[-1])
    if old is not None and isinstance(old.value, dict):
        return [f"{item.where}: {'.'.join(names)} is a section; override one of: {', '.join(old.value)}"]
    entries[names[-1]] = item
    return []


def where(root: Item, key: str) -> str:
    """The place where the dotted `key` is written, or that of the innermost section written around it."""
    item = root
    for name in key.split("."):
        entries = item.section or {}
        if name not in entries:
            break
        item = entries[name]
    return item.where
