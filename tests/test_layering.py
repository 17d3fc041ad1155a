"""Imports point one way, and third-party objects stop at their file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "ijepa_ds"
# From the bottom up. A part imports from rows below its own, and from itself; a new module joins a part or gets a row.
ROWS = (
    ("config", "stop", "durable", "rank_log", "hosts", "versions", "exits", "processes"),
    ("counter", "schedules", "cpu", "hygiene", "pieces"),
    ("masks",),
    ("vit", "data", "resolution", "metrics", "attention", "health", "event_log", "dashboard", "mfu", "checkpoint_files"),
    ("ijepa", "run_dir"),
    ("weights",),
    ("decoder",),
    ("visualize",),
    ("evals", "plan", "checkpoints"),
    ("doctor",),
    # From here on with DeepSpeed: nothing above this line may need it.
    ("zero_support", "zero_disk", "zero_norm", "zero_publish", "collectives"),
    ("zero_layout",),
    ("ema", "zero_gather"),
    ("engine",),
    ("decoder_engine",),
    ("agreement", "watch"),
    ("checkpoint", "saver", "reporter", "bad_samples"),
    ("skipped",),
    ("live_eval",),
    ("loop",),
    ("supervised",),
    ("train", "supervise", "train_decoder"),
    ("bench", "scale"),
    ("cli",),
)
HEIGHT = {part: height for height, row in enumerate(ROWS) for part in row}
# Modules that are one part, by how they begin.
FAMILIES = {"config_": "config", "cpu_": "cpu", "mask_": "masks", "vit_": "vit", "checkpoint_": "checkpoint_files"}
# Checks of a configuration that ask the table of the samplers; inside a function only.
LATE = {("config_check", "masks")}
LATE |= {(PACKAGE, "weights")}  # `ijepa_ds.load_encoder`, looked up when first asked for
ONLY_IN = {
    "deepspeed": {
        *("engine", "decoder_engine", "checkpoint", "collectives"),
        *("zero_layout", "zero_publish", "zero_norm", "zero_disk"),
    },
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
    """`ijepa_ds.data.index` -> data, `ijepa_ds.mask_blocks` -> masks."""
    first = module.split(".")[1]
    return next((part for prefix, part in FAMILIES.items() if first.startswith(prefix)), first)


def complaints(root: Path) -> list[str]:
    """What in the package at `root` breaks the rules, a line each."""
    files = {}
    for file in sorted(root.rglob("*.py")):
        parts = [PACKAGE, *file.relative_to(root).with_suffix("").parts]
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    found = []
    for module, file in files.items():
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for item in imports(file.read_text(encoding="utf-8"), package, set(files)):
            where = f"{file.relative_to(root)}:{item.line}"
            found += [f"{where}: {reason}" for reason in reasons(module, item)]
    return found


def reasons(module: str, item: Import) -> Iterator[str]:
    """Why `module` may not import `item`."""
    own = part_of(module) if "." in module else ""
    top = item.module.split(".")[0]
    if own not in ONLY_IN.get(top, {own}):
        yield f"{top} is imported only by {', '.join(sorted(ONLY_IN[top]))}"
    if top != PACKAGE or item.module == PACKAGE:
        return
    other = part_of(item.module)
    if item.late and (module.removeprefix(f"{PACKAGE}."), other) in LATE:
        return
    for part in (own, other):
        if part not in HEIGHT:
            yield f"{part or PACKAGE} has no row in ROWS of tests/test_layering.py"
            return
    if own != other and HEIGHT[other] >= HEIGHT[own]:
        yield f"{own} may not import {other}: it is not below it"


def test_imports_point_one_way(repository: Path) -> None:
    assert complaints(repository / PACKAGE) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("vit.py", "from ijepa_ds.engine import Engine", "vit.py:1: vit may not import engine: it is not below it"),
        ("vit.py", "\nfrom ijepa_ds import config, loop", "vit.py:2: vit may not import loop: it is not below it"),
        ("vit.py", "from . import train", "vit.py:1: vit may not import train: it is not below it"),
        ("vit.py", "def f():\n  import ijepa_ds.ijepa", "vit.py:2: vit may not import ijepa: it is not below it"),
        ("data/x.py", "from ..vit import Encoder", "data/x.py:1: data may not import vit: it is not below it"),
        ("evals/knn.py", "from ijepa_ds.train import main", "evals/knn.py:1: evals may not import train: it is not below it"),
        ("config_check.py", "from ijepa_ds import masks", "config_check.py:1: config may not import masks: it is not below it"),
        (
            "loop.py",
            "import deepspeed.comm",
            "loop.py:1: deepspeed is imported only by checkpoint, collectives, decoder_engine, engine, zero_disk, zero_layout, "
            "zero_norm, zero_publish",
        ),
        ("evals/knn.py", "def f():\n  from nvidia.dali import fn", "evals/knn.py:2: nvidia is imported only by data"),
        ("helper.py", "import ijepa_ds.vit", "helper.py:1: helper has no row in ROWS of tests/test_layering.py"),
        ("__init__.py", "from ijepa_ds import vit", "__init__.py:1: ijepa_ds has no row in ROWS of tests/test_layering.py"),
    ],
)
def test_a_wrong_import_is_named(name: str, source: str, expected: str, tmp_path: Path) -> None:
    for module in ("config", "engine", "loop", "train", "vit", "masks", "ijepa"):
        (tmp_path / f"{module}.py").write_text("")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    assert complaints(tmp_path) == [expected]


def test_a_right_import_passes(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "config_check.py").write_text("def f():\n  from ijepa_ds import masks, __version__\n")
    (tmp_path / "masks.py").write_text("import torch\nfrom ijepa_ds import mask_blocks\n")
    (tmp_path / "mask_blocks.py").write_text("from ijepa_ds.config import MasksConfig\n")
    (tmp_path / "data" / "dali.py").write_text("from nvidia.dali import fn\nfrom .index import ImageIndex\n")
    assert complaints(tmp_path) == []


def modules_after(statement: str) -> set[str]:
    """Names of all modules that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_package_or_its_command_line_does_nothing() -> None:
    loaded = modules_after("import ijepa_ds.cli")
    assert not loaded & {"torch", "numpy", "yaml", "deepspeed", "nvidia.dali", "matplotlib"}


def test_the_model_needs_neither_deepspeed_nor_dali() -> None:
    loaded = modules_after("import ijepa_ds.vit, ijepa_ds.ijepa, ijepa_ds.weights, ijepa_ds.schedules")
    assert "torch" in loaded
    assert not loaded & {"deepspeed", "nvidia.dali", "matplotlib", "tensorboard"}
