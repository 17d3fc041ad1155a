"""Imports point one way, and third-party objects stop at their file."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.processes import modules_after

PACKAGE = "ijepa_ds"
# From the ground floor up. A package imports from floors below its own, and from itself; a new package gets a floor.
FLOORS = (
    ("counter", "durable", "exits", "field_types", "machine", "shown"),
    ("errors", "terminal"),
    ("examples", "storage", "versions"),
    ("arguments",),
    ("masks", "distributed", "options"),
    ("config",),
    ("data", "scenes", "telemetry"),
    ("model", "plotting"),
    ("zero",),
    ("checkpoint", "ema"),
    ("cluster", "weights"),
    ("evals", "decoder"),
    ("training", "visualize", "plan"),
    ("doctor", "bench", "scale"),
    ("train", "train_decoder", "begin"),  # entry points: `--module ijepa_ds.train`
    ("cli",),
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
LATE = {(PACKAGE, "weights")}  # `ijepa_ds.load_encoder`, looked up on first use
ONLY_IN = {
    "deepspeed": {"distributed.world", "zero", "training.engine", "decoder.engine"},
    "nvidia": {"data"},
    "diffusers": {"decoder"},
}


class Import(NamedTuple):
    """`module` ("ijepa_ds.data.index", "torch.nn") is imported in `line`, inside a function or not."""

    module: str
    line: int
    late: bool


def imports(source: str, package: str, known: set[str]) -> Iterator[Import]:
    """Every import in a file of `package`; `from a import b` counts as a.b where that is a module in `known`."""

    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(full if full in known else base, node.lineno, late)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, late)

    return visit(ast.parse(source), False)


def part_of(module: str) -> str:
    """`ijepa_ds.data.index` -> data."""
    return module.split(".")[1]


def module_files(root: Path) -> dict[str, Path]:
    """The file of every module in the package at `root`."""
    files = {}
    for file in sorted(root.rglob("*.py")):
        parts = [PACKAGE, *file.relative_to(root).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def imports_of(module: str, files: dict[str, Path]) -> Iterator[Import]:
    """The imports of one module of `module_files`."""
    file = files[module]
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return imports(file.read_text(encoding="utf-8"), package, set(files))


def complaints(root: Path) -> list[str]:
    """What in the package at `root` breaks the rules, a line each."""
    files = module_files(root)
    found: list[str] = []
    below: dict[str, set[str]] = {}
    for module, file in files.items():
        for item in imports_of(module, files):
            where = f"{file.relative_to(root)}:{item.line}"
            found += [f"{where}: {reason}" for reason in reasons(module, item)]
            if item.module in files and not item.late:
                below.setdefault(module, set()).add(item.module)
    for circle in circles(below):
        names = ", ".join(str(files[module].relative_to(root)) for module in sorted(circle))
        found.append(f"{names} import each other")
    return found


def circles(below: dict[str, set[str]]) -> list[set[str]]:
    """Sets of modules that reach each other by imports; `below`: what a module imports when it is loaded."""

    def reach(module: str) -> set[str]:
        seen, ahead = set(), [module]
        while ahead:
            for other in below.get(ahead.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    ahead.append(other)
        return seen

    reached = {module: reach(module) for module in below}
    found: list[set[str]] = []
    for module, others in reached.items():
        circle = {other for other in others if module in reached.get(other, ())}
        if circle and circle not in found:
            found.append(circle)
    return found


def reasons(module: str, item: Import) -> Iterator[str]:
    """Why `module` may not import `item`."""
    own = part_of(module) if "." in module else ""
    top = item.module.split(".")[0]
    inside = module.removeprefix(f"{PACKAGE}.") + "."
    if top in ONLY_IN and not any(inside.startswith(f"{place}.") for place in ONLY_IN[top]):
        yield f"{top} is imported only by {', '.join(sorted(ONLY_IN[top]))}"
    if top != PACKAGE or item.module == PACKAGE:
        return
    other = part_of(item.module)
    if item.late and (module.removeprefix(f"{PACKAGE}."), other) in LATE:
        return
    for part in (own, other):
        if part not in FLOOR:
            yield f"{part or PACKAGE} has no floor in FLOORS of tests/test_layering.py"
            return
    if own != other and FLOOR[other] >= FLOOR[own]:
        yield f"{own} may not import {other}: it is not below it"


def test_imports_point_one_way(repository: Path) -> None:
    assert complaints(repository / PACKAGE) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        (
            "model/vit.py",
            "from ijepa_ds.training.engine import Engine",
            "model/vit.py:1: model may not import training: it is not below it",
        ),
        (
            "model/vit.py",
            "\nfrom ijepa_ds import config, training",
            "model/vit.py:2: model may not import training: it is not below it",
        ),
        ("model/vit.py", "from .. import train", "model/vit.py:1: model may not import train: it is not below it"),
        (
            "masks/blocks.py",
            "def f():\n  import ijepa_ds.config",
            "masks/blocks.py:2: masks may not import config: it is not below it",
        ),
        ("data/x.py", "from ..model.vit import Encoder", "data/x.py:1: data may not import model: it is not below it"),
        ("evals/knn.py", "from ijepa_ds.train import main", "evals/knn.py:1: evals may not import train: it is not below it"),
        (
            "training/loop.py",
            "import deepspeed.comm",
            "training/loop.py:1: deepspeed is imported only by decoder.engine, distributed.world, training.engine, zero",
        ),
        ("evals/knn.py", "def f():\n  from nvidia.dali import fn", "evals/knn.py:2: nvidia is imported only by data"),
        ("helper.py", "import ijepa_ds.model", "helper.py:1: helper has no floor in FLOORS of tests/test_layering.py"),
        (
            "__init__.py",
            "from ijepa_ds import model",
            "__init__.py:1: ijepa_ds has no floor in FLOORS of tests/test_layering.py",
        ),
        ("data/a.py", "from ijepa_ds.data import b", "data/a.py, data/b.py import each other"),
    ],
)
def test_a_wrong_import_is_named(name: str, source: str, expected: str, tmp_path: Path) -> None:
    for module in (
        "config/__init__",
        "data/__init__",
        "training/engine",
        "training/__init__",
        "train",
        "model/vit",
        "model/__init__",
    ):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / f"{module}.py").write_text("")
    (tmp_path / "data" / "b.py").write_text("from ijepa_ds.data import a\n")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    assert complaints(tmp_path) == [expected]


def test_a_right_import_passes(tmp_path: Path) -> None:
    for package in ("data", "config", "masks"):
        (tmp_path / package).mkdir()
    (tmp_path / "config" / "checks.py").write_text("def f():\n  from ijepa_ds import masks, __version__\n")
    (tmp_path / "masks" / "sampler.py").write_text("import torch\nfrom ijepa_ds.masks import blocks\n")
    (tmp_path / "masks" / "blocks.py").write_text("from ijepa_ds.counter import fold\n")
    (tmp_path / "data" / "dali.py").write_text("from nvidia.dali import fn\nfrom .index import ImageIndex\n")
    assert complaints(tmp_path) == []


def test_every_package_says_what_it_is_for(repository: Path) -> None:
    for file in (repository / PACKAGE).rglob("__init__.py"):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert docstring and docstring.splitlines()[0].endswith("."), f"{file}: its docstring is one sentence"


def test_importing_the_package_or_its_command_line_does_nothing() -> None:
    loaded = modules_after("import ijepa_ds.cli")
    assert not loaded & {"torch", "numpy", "yaml", "deepspeed", "nvidia.dali", "matplotlib"}


def test_the_model_needs_neither_deepspeed_nor_dali() -> None:
    loaded = modules_after("import ijepa_ds.model.ijepa, ijepa_ds.weights, ijepa_ds.config.schedules")
    assert "torch" in loaded
    assert not loaded & {"deepspeed", "nvidia.dali", "matplotlib", "tensorboard"}


def test_evaluations_need_no_deepspeed() -> None:
    loaded = modules_after("import ijepa_ds.evals.run, ijepa_ds.distributed.agreement")
    assert "torch" in loaded and "deepspeed" not in loaded
