"""YAML and command-line overrides as a tree of values with their places. Safe types only; errors name their line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ijepa_ds.config.schema import ConfigError
from ijepa_ds.shown import is_text, shown

_MAX_DEPTH = 8  # nested sections; an alias that contains itself would have no end


@dataclass(frozen=True)
class Item:
    """One value and its place."""

    value: Any  # a scalar, a list of plain values, None, or `dict[str, Item]` for a section
    where: str  # "run.yaml:12" or "override data.source=..."

    @property
    def section(self) -> dict[str, Item] | None:
        """The entries if this is a section (an empty one may be written as nothing at all), else None."""
        if self.value is None:
            return {}
        return self.value if isinstance(self.value, dict) else None


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        ConfigError: the file is missing or is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read ({error.strerror})"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})"]) from error


def read(path: Path) -> tuple[Item, list[str]]:
    """The tree of a YAML file, and its problems (duplicate keys, unreadable values).

    Raises:
        ConfigError: the file is missing, is not text, is not YAML, or has no `key: value` at its top.
    """
    return parse(read_text(path), str(path))


def parse(text: str, label: str) -> tuple[Item, list[str]]:
    """The same for a text; `label` precedes the line numbers.

    Raises:
        ConfigError: the text is not YAML, or not a mapping.
    """
    if (odd := yaml.SafeLoader.NON_PRINTABLE.search(text)) is not None:
        line = text.count("\n", 0, odd.start()) + 1
        raise ConfigError([f"{label}:{line}: holds the character {odd[0]!r}, which YAML forbids: remove it"])
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode | None):
            raise ConfigError([f"{label}: expected sections such as 'data:' at the top, found {node.id}"])  # type: ignore[attr-defined]
        found: list[str] = []
        return (_convert(loader, node, label, label, "", found) if node else Item({}, label)), found
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f"{label}:{mark.line + 1}" if mark else label
        raise ConfigError([f"{place}: not valid YAML: {_reason(error)}"]) from error
    except RecursionError:
        raise ConfigError([f"{label}: lists or sections are nested too deep, or contain themselves"]) from None
    finally:
        loader.dispose()


def _reason(error: Exception) -> str:
    return getattr(error, "problem", None) or str(error)


def _convert(loader: yaml.SafeLoader, node: yaml.Node, label: str, where: str, key: str, problems: list[str]) -> Item:
    """`node` as an item; `key` is its dotted name."""
    if not isinstance(node, yaml.MappingNode):
        try:
            problems += [f"{where}: {key}: {text}" for text in _ambiguous(loader, node)]
            return Item(loader.construct_object(node, deep=True), where)
        except (yaml.YAMLError, ValueError) as error:
            problems.append(f"{where}: {key}: cannot be read: {_reason(error)}")
            return Item(None, where)
    if key.count(".") >= _MAX_DEPTH:
        problems.append(f"{where}: {key}: nested too deep")
        return Item(None, where)
    entries: dict[str, Item] = {}
    for key_node, value_node in node.value:
        name = key_node.value if isinstance(key_node, yaml.ScalarNode) else f"<{key_node.id}>"
        here = f"{label}:{key_node.start_mark.line + 1}"
        dotted = f"{key}.{name}" if key else name
        if key_node.tag == "tag:yaml.org,2002:merge":
            problems.append(
                f"{here}: {key or 'the top'}: a YAML merge key (<<) is not supported; write out the keys it would add"
            )
            continue
        item = _convert(loader, value_node, label, here, dotted, problems)
        if "." in name:
            section, _, rest = name.rpartition(".")
            problems.append(f"{here}: {dotted}: a dot makes no section in a file; write {rest} inside {section}")
        elif name in entries:
            problems.append(f"{here}: {dotted}: already given at {entries[name].where}; remove one of them")
        else:
            entries[name] = item
    return Item(entries, where)


def _ambiguous(loader: yaml.SafeLoader, node: yaml.Node) -> list[str]:
    """Numbers that YAML 1.1 reads in another base than ten, each with what to write."""
    if isinstance(node, yaml.SequenceNode):
        return [text for inner in node.value for text in _ambiguous(loader, inner)]
    if not isinstance(node, yaml.ScalarNode) or node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        return []
    text, value = node.value, loader.construct_object(node)
    if ":" in text:
        return [f"YAML reads {text} in base 60, as {value}; write {value}, or '{text}' in quotes for a text"]
    digits = text.lstrip("+-").replace("_", "")
    if digits.isdigit() and int(digits) != abs(value):
        plain = int(digits) * (-1 if value < 0 else 1)
        return [f"YAML reads {text} in base 8, as {value}; write {value}, or {plain} without the zero in front"]
    return []


def apply_overrides(root: Item, overrides: Sequence[str]) -> list[str]:
    """Put `section.key=value` texts into the tree, in place; they replace values of the file; the last one wins (`repeated`).

    Returns:
        Problems, one line each.
    """
    found = []
    for text in overrides:
        dotted, equals, written = text.partition("=")
        problem = None
        if not equals or not all(dotted.strip().split(".")):
            problem = "expected section.key=value, such as optimization.lr=1e-3"
        elif not is_text(text):
            problem = "is not UTF-8, which YAML requires; give a link with another name, or put the path into a variable"
        else:
            try:
                value, wrong = _scalar(written)
                problem = wrong or put(root, dotted.strip(), value, f"override {text}")
            except (yaml.YAMLError, ValueError, RecursionError):
                problem = f"the value is not valid YAML; put it in quotes: {dotted}='\"...\"'"
        if problem:
            found.append(f"override {shown(text)}: {problem}")
    return found


def repeated(overrides: Sequence[str]) -> list[str]:
    """Notes on keys that overrides give more than once, with different values."""
    given: dict[str, list[str]] = {}
    for text in overrides:
        key, equals, written = text.partition("=")
        if equals:
            given.setdefault(key.strip(), []).append(written.strip())
    return [
        f"{key}: given {len(values)} times on the command line ({', '.join(map(shown, values))}); the last is used"
        for key, values in given.items()
        if len(set(values)) > 1
    ]


def _scalar(written: str) -> tuple[Any, str]:
    """The value of an override, and what is wrong with it."""
    loader = yaml.SafeLoader(written)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, ""
        wrong = _ambiguous(loader, node)
        if rest := written[node.end_mark.index :].strip():
            wrong.append(f"YAML takes {shown(rest)} for a comment; put the value in quotes")
        return loader.construct_document(node), "; ".join(wrong)
    finally:
        loader.dispose()


def put(root: Item, key: str, value: Any, origin: str) -> str | None:
    """Set a dotted key of a tree, in place; returns the problem, if it cannot be set."""
    if isinstance(value, dict):
        return f"a whole section; override single keys, such as {key}.key=value"
    *sections, last = key.split(".")
    item = root
    for depth, name in enumerate(sections, start=1):
        inner = item.value.get(name, Item({}, origin))
        if inner.section is None:
            return f"{'.'.join(sections[:depth])} is a single value ({inner.where}), it has no keys"
        item.value[name] = item = Item(inner.section, inner.where)
    old = item.value.get(last)
    if old is not None and isinstance(old.value, dict):
        return f"{key} is a section; override one of: {', '.join(old.value)}"
    item.value[last] = Item(value, origin)
    return None


def where(root: Item, key: str) -> str:
    """The place of the dotted `key`, or that of the innermost section around it that is written."""
    item = root
    for name in key.split("."):
        entries = item.section or {}
        if name not in entries:
            break
        item = entries[name]
    return item.where


def plain(item: Item) -> Any:
    """The values of a tree without their places."""
    return {name: plain(entry) for name, entry in item.value.items()} if isinstance(item.value, dict) else item.value
