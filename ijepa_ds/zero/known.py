"""Whether the source of DeepSpeed's functions is the one that replacements were written for."""

from __future__ import annotations

import ast
import hashlib
import inspect
from functools import cache
from types import ModuleType
from typing import Any

Known = tuple[tuple[ModuleType, str, str], ...]  # module, name, SHA-256 of the source in DeepSpeed 0.19.8


def unknown(known: Known) -> list[str]:
    """Names of functions whose source is another."""
    return [name for module, name, expected in known if digest(module, name) != expected]


@cache
def digest(module: ModuleType, name: str) -> str:
    """SHA-256 of the source of a function or class, decorators included; empty if the module's file has none of that name.

    It is read from the file: decorators hide a function's own source, and a replaced function has another.
    """
    text = inspect.getsource(module)
    node: Any = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", None) == part), None)
        if node is None:
            return ""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    source = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    return hashlib.sha256(source.encode()).hexdigest()
