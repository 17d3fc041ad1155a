"""Draws the packages of ijepa_ds and their imports as a Mermaid graph: `python -m tests.house`.

`--write` puts the graph into docs/architecture.md. Rows are the floors of tests/test_layering.py. Arrows point from the
importing package to the imported one; an arrow is left out where a longer path leads the same way (transitive reduction).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.test_layering import FLOORS, LATE, PACKAGE, imports_of, module_files, part_of

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "architecture.md"
BEGIN, END = "<!-- begin: python -m tests.house --write -->", "<!-- end -->"
GROUND = "root"  # one node for the single modules of the ground floors
MODULES = [part for floor in FLOORS[:3] for part in floor]
Graph = dict[str, set[str]]  # node -> nodes that it imports


def node_of(part: str) -> str:
    """The node that stands for a package or a single module."""
    return GROUND if part in MODULES else part


def rows() -> list[list[str]]:
    """Nodes by floor, from the ground up."""
    return [[GROUND], *(list(parts) for parts in FLOORS[3:])]


def read_graph(root: Path) -> Graph:
    """Read which package imports which, from the files of the package at `root`."""
    files = module_files(root)
    graph: Graph = {node: set() for row in rows() for node in row}
    for module in files:
        if module == PACKAGE:
            continue
        for item in imports_of(module, files):
            if item.module == PACKAGE or item.module not in files:
                continue
            if item.late and (module.removeprefix(f"{PACKAGE}."), part_of(item.module)) in LATE:
                continue
            graph[node_of(part_of(module))].add(node_of(part_of(item.module)))
    return {node: others - {node} for node, others in graph.items()}


def reachable(graph: Mapping[str, set[str]], node: str) -> set[str]:
    """Every node that a path of at least one arrow leads to."""
    found: set[str] = set()
    ahead = list(graph[node])
    while ahead:
        other = ahead.pop()
        if other not in found:
            found.add(other)
            ahead += graph[other]
    return found


def reduced(graph: Graph) -> Graph:
    """The transitive reduction of a graph without circles."""
    return {
        node: {other for other in others if not any(other in reachable(graph, way) for way in others - {other})}
        for node, others in graph.items()
    }


def spacers(graph: Graph) -> Iterator[tuple[str, str]]:
    """Invisible links that keep every node in the row of its floor: each node gets a neighbour above and below."""
    order = rows()
    for low, high in zip(order, order[1:], strict=False):
        links = {(node, other) for node in high for other in graph[node] if other in low}
        yield from ((node, low[0]) for node in high if not any(node == upper for upper, _ in links))
        yield from ((high[0], other) for other in low if not any(other == lower for _, lower in links))


def mermaid(graph: Graph) -> str:
    """The reduced graph as Mermaid text."""
    small = reduced(graph)
    lines = ["flowchart TB"]
    for row in reversed(rows()):
        lines += [f"    {node}[{', '.join(sorted(MODULES)) if node == GROUND else node}]" for node in row]
    for row in reversed(rows()):
        lines += [f"    {node} --> {other}" for node in row for other in sorted(small[node])]
    lines += sorted({f"    {node} ~~~ {other}" for node, other in spacers(small)})
    return "\n".join(lines)


def updated(page: str, drawing: str) -> str:
    """The page with `drawing` between the two markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE}: expected the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n```mermaid\n{drawing}\n```\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the graph, or write it into the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.house", description="Draw the packages and their imports.")
    parser.add_argument("--write", action="store_true", help=f"update {PAGE.relative_to(REPOSITORY)}")
    drawing = mermaid(read_graph(REPOSITORY / PACKAGE))
    if not parser.parse_args(argv).write:
        print(drawing)
        return 0
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), drawing), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
