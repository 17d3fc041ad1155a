"""What pip builds from the tree is whole, and works away from it."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ijepa_ds


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built in a copy of the tree without network."""
    copy = tmp_path_factory.mktemp("tree") / "a checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(repository / "ijepa_ds", copy / "ijepa_ds", ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(repository / name, copy / name)
    code = "import setuptools.build_meta as build; build.build_wheel('out')"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def requirements(metadata: Message, extra: str) -> dict[str, Requirement]:
    """What is installed with `extra` ("" = without any) on Linux, by name."""
    found = map(Requirement, metadata.get_all("Requires-Dist", []))
    environment = {"extra": extra, "sys_platform": "linux"}
    return {item.name: item for item in found if item.marker is None or item.marker.evaluate(environment)}


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert held == {str(file.relative_to(repository)) for file in (repository / "ijepa_ds").rglob("*.py")}


def test_every_folder_of_modules_is_a_package(repository: Path) -> None:
    folders = {file.parent for file in (repository / "ijepa_ds").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_name_version_and_python(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == ("ijepa_ds", ijepa_ds.__version__)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_ranges_admit_what_is_installed_and_keep_to_one_minor_of_deepspeed(metadata: Message) -> None:
    base = requirements(metadata, "")
    for name in ("torch", "deepspeed", "timm"):
        assert base[name].specifier.contains(version(name).split("+")[0]), base[name]
    assert "0.19.8" in base["deepspeed"].specifier
    assert "0.20.0" not in base["deepspeed"].specifier
    assert "2.16.0" not in base["torch"].specifier


def test_the_two_builds_of_dali_never_come_together(metadata: Message) -> None:
    builds = {
        extra: {n for n in requirements(metadata, extra) if n.startswith("nvidia-dali")}
        for extra in metadata.get_all("Provides-Extra", [])
    }
    assert builds["dali"] == {"nvidia-dali-cuda130"}
    assert builds["dali-cuda12"] == {"nvidia-dali-cuda120"}
    assert builds["test"] == set()
    assert not {name for name in requirements(metadata, "") if name.startswith("nvidia-dali")}


def test_everything_imported_is_a_dependency(metadata: Message, repository: Path) -> None:
    spelling = {"yaml": "pyyaml", "PIL": "pillow", "sklearn": "scikit-learn", "nvidia": "nvidia-dali-cuda130"}
    declared = {name.lower() for extra in ("dali", "decoder") for name in requirements(metadata, extra)} | {"ijepa_ds"}
    missing = set()
    for file in (repository / "ijepa_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names
            missing |= {f"{file.name}: {top}" for top in tops if spelling.get(top, top) not in declared}
    assert missing == set()


def test_the_installed_command_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    scripts = configparser.ConfigParser()
    scripts.read(next(site.glob("*.dist-info/entry_points.txt")))
    module, _, function = scripts["console_scripts"]["ijepa-ds"].partition(":")
    code = (
        f"import sys, ijepa_ds, {module}\n"
        f"assert ijepa_ds.__file__.startswith({str(site)!r}), ijepa_ds.__file__\n"
        f"sys.exit({module}.{function}())"
    )
    for arguments, expected in (["--version"], f"ijepa_ds {ijepa_ds.__version__}"), (["--help"], "summary"):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
