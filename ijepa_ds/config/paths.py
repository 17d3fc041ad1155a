"""Paths that a user writes: variables and `~` are expanded, and what cannot be expanded is refused, never taken literally."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from ijepa_ds.config import yaml_tree
from ijepa_ds.config.yaml_tree import Item

KEYS = ("run.dir", "run.resume", "run.branch_from", "data.source", "model.init_from", "eval.train", "eval.test")
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*)|)")
_PLACEHOLDER = re.compile(
    r"<[^<>/]*>|\{\{.*\}\}|%\w+%|(?:^|/)path/to(?:/|$)|replace[_-]?(?:this|me)|change[_-]?me"
    r"|(?:^|[/_-])your[_-](?:\w*[_-])?(?:path|data|dataset|dir|directory|folder|logs?)(?:[_/-]|$)|(?:^|/)(?:todo|fixme|tbd|xxx+)(?:/|$)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z]:\\")  # a scheme, or a drive of Windows


def expand(text: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """A path with its variables and `~` filled in, and what is wrong with it.

    Args:
        text: as written: `$NAME` and `${NAME}` anywhere, `~` and `~user` at the start.
        environment: the variables.

    Returns:
        The path and an empty text; or the path as written and the problem, with what to do.
    """
    problems = []

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not name:
            problems.append(f"'$' in {text!r}: only $NAME and ${{NAME}} are expanded; write the path")
        elif _PLACEHOLDER.search(name):
            problems.append(f"{match[0]} is a placeholder of the file this came from; write your path in its place")
        elif not environment.get(name):
            state = "is empty" if name in environment else "is not set"
            problems.append(f"{match[0]} {state} in the environment of this process; export {name}, or write the path")
        elif "$" in environment[name] and not os.path.lexists(environment[name]):
            problems.append(
                f"{match[0]} is {environment[name]!r}, which is not expanded again; export {name} with its full path"
            )
        return environment.get(name or "", "")

    found = _VARIABLE.sub(value, text)
    if "\0" in found:
        problems.append("a path cannot hold the character of code 0; write the path")
    if not problems:
        found = os.path.expanduser(found)
        if found.startswith("~") and not os.path.lexists(found):
            problems.append(f"{found.partition('/')[0]} is no user of this host; write the path")
        elif (address := _ADDRESS.match(found)) and not os.path.lexists(found):
            problems.append(f"{address[0]} begins an address; only paths of this host are understood: write one")
        elif (mark := _PLACEHOLDER.search(found)) and not os.path.lexists(found):
            problems.append(f"{mark[0].strip('/')!r} in {found} is a placeholder; write your path in its place")
    return (text, "; ".join(problems)) if problems else (found, "")


def expand_keys(root: Item, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Expand the paths of a configuration's tree, in place.

    Returns:
        Notes on what was expanded ("run.dir: $SCRATCH/x is /scratch/me/x"), and problems with their places.
    """
    notes, problems = [], []
    for key in KEYS:
        item = _entry(root, key)
        if item is None or not isinstance(item.value, str):
            continue
        path, problem = expand(item.value, environment)
        if problem:
            problems.append(f"{item.where}: {key}: {problem}")
        elif path != item.value:
            notes.append(f"{key}: {item.value} is {path}")
            yaml_tree.put(root, key, path, item.where)
    return notes, problems


def _entry(root: Item, key: str) -> Item | None:
    item: Item | None = root
    for name in key.split("."):
        item = (item.section or {}).get(name) if item else None
    return item


def expand_values(written: Any, environment: Mapping[str, str], key: str = "") -> tuple[Any, list[tuple[str, str]]]:
    """The same for values of a JSON whose keys end in `path`: a copy, and (dotted key, problem) of each that is wrong."""
    if isinstance(written, dict):
        made, problems = {}, []
        for name, value in written.items():
            made[name], wrong = expand_values(value, environment, f"{key}.{name}" if key else name)
            problems += wrong
        return made, problems
    if not isinstance(written, str) or not key.endswith("path"):
        return written, []
    path, problem = expand(written, environment)
    return path, [(key, problem)] if problem else []
