"""Messages name only what exists: keys of a configuration, verbs of the command line, files of the project."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from ijepa_ds import cli
from ijepa_ds.config.build import nodes

PACKAGE = Path(cli.__file__).parent
SECTIONS = ("run", "data", "model", "masks", "targets", "objective", "optimization", "eval")
KEY = re.compile(rf"(?<![\w./-])(?:{'|'.join(SECTIONS)})\.[a-z_]+(?:\.[a-z_]+)?(?![\w(/-])")
FILE_ENDINGS = ("yaml", "json", "index", "safetensors", "pth", "pt", "py", "tar", "jsonl")
PAGE = re.compile(r"(?:docs|configs|ds_configs|launch)/[\w.]+\.(?:md|yaml|json|sh|sbatch)")
VERB = re.compile(r"(?:`|: |^|use |run )ijepa-ds ([a-z][a-z-]+)")
# Names of other things: keys of the published format and of a ladder's file, measurements
NOT_OURS = ("config/published.py", "scale/execute.py", "bench/masks.py")


def texts() -> Iterator[tuple[str, int, str]]:
    """File, line and text of every string of the package that is no docstring."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
                yield str(path.relative_to(PACKAGE)), node.lineno, node.value


def test_keys() -> None:
    known = set(nodes()) | {key.rpartition(".")[0] for key in nodes()}
    wrong = [
        f"{file}:{line}: {key}"
        for file, line, text in texts()
        for key in KEY.findall(text)
        if file not in NOT_OURS and key not in known and key.rpartition(".")[2] not in FILE_ENDINGS
    ]
    assert wrong == []


def test_files(repository: Path) -> None:
    named = [(file, line, page) for file, line, text in texts() for page in PAGE.findall(text)]
    assert len(named) > 20
    assert [entry for entry in named if not (repository / entry[2]).exists()] == []


def test_verbs() -> None:
    known = {words.split()[0] for words in cli.VERBS}
    named = [(file, line, verb) for file, line, text in texts() for verb in VERB.findall(text)]
    assert len(named) > 20
    assert [entry for entry in named if entry[2] not in known] == []
