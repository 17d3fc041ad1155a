"""`ijepa-ds config schema`: the JSON schema of a run's YAML, and the tables of keys in docs/configuration.md."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ijepa_ds.config.build import bounds, expected, json_schema, nodes
from ijepa_ds.config.saving import scalar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ijepa-ds config schema`."""
    parser.add_argument("--out", type=Path, help="file to write; without it the schema is printed")
    parser.add_argument("--markdown", action="store_true", help="write the tables of keys of docs/configuration.md instead")


def run(args: argparse.Namespace) -> int:
    """Write or print the schema."""
    text = tables() if args.markdown else json.dumps(json_schema(), indent=2) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def tables() -> str:
    """All keys in Markdown, one table per section."""
    text, sections = "", json_schema()["$defs"]
    for section, reference in json_schema()["properties"].items():
        rows = [f"| `{key}` | {_default(node)} | {_values(node)} | {node['description']} |\n" for key, node in nodes().items()]
        text += f"### {section}\n\n{sections[reference['$ref'].rpartition('/')[2]]['description']}\n\n"
        text += "| key | default | values | meaning |\n|---|---|---|---|\n"
        text += "".join(row for row in rows if row.startswith(f"| `{section}.")) + "\n"
    return text.rstrip() + "\n"


def _default(node: Mapping[str, Any]) -> str:
    return f"`{scalar(node['default'])}`" if "default" in node else "required"


def _values(node: Mapping[str, Any]) -> str:
    if "enum" in node:
        return ", ".join(f"`{name}`" for name in node["enum"])
    if "anyOf" in node:
        return f"{_values(node['anyOf'][0])}, or null"
    return bounds(node) if node.get("ordered") else ", ".join(filter(None, (expected(node), bounds(node))))
