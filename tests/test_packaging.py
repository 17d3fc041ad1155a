"""What pip builds from the tree is whole, and works away from it."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.message import Message
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ijepa_ds
from ijepa_ds.examples import FOLDERS
from tests.dist.launched import TINY, prepare
from tests.waiting import limit


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built in a copy of the tree without network."""
    copy = tmp_path_factory.mktemp("tree") / "a checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("ijepa_ds", *FOLDERS):
        shutil.copytree(repository / folder, copy / folder, ignore=ignored)
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


def test_the_wheel_holds_every_module_the_examples_and_nothing_else(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    examples = {file.relative_to(repository) for folder in FOLDERS for file in (repository / folder).glob("[!_.]*.*")}
    modules = {str(file.relative_to(repository)) for file in (repository / "ijepa_ds").rglob("*.py")}
    assert held == modules | {f"ijepa_ds/shipped/{name}" for name in examples}


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
    declared = {name.lower() for extra in ("dali", "decoder", "dicom") for name in requirements(metadata, extra)} | {"ijepa_ds"}
    missing = set()
    for file in (repository / "ijepa_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            tops = {name.split(".")[0] for name in names} - sys.stdlib_module_names
            missing |= {f"{file.name}: {top}" for top in tops if spelling.get(top, top) not in declared}
    assert missing == set()


@pytest.fixture
def installed(wheel: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a module of the unpacked wheel in a folder away from the checkout."""
    site, place = tmp_path / "venv" / "site", tmp_path / "place"
    place.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        given = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=place, env=given, capture_output=True, text=True, timeout=limit(300))

    return run


def test_the_installed_command_copies_and_resolves_the_examples(installed: Callable, tmp_path: Path) -> None:
    place = tmp_path / "place"
    plan = [
        "plan",
        "--config",
        "configs/in1k_vith14.yaml",
        "--deepspeed_config",
        "ds_configs/zero3.json",
        "--images",
        "1000000",
    ]
    done = installed("ijepa_ds.cli", *plan, "--images", "1000000", "--nodes", "2", "--gpus-per-node", "8", "--gpu", "a100-80g")
    assert done.returncode == 0 and not (place / "configs").exists(), done.stderr
    done = installed("ijepa_ds.cli", "scale", "configs/ladder_vith_up.yaml", "--plan", "--only", "h14/100M")
    assert done.returncode == 0 and "h14/100M" in done.stdout, done.stderr
    done = installed("ijepa_ds.cli", "copy-examples", "mine")
    assert done.returncode == 0, done.stderr
    for name in ("configs/in1k_vith14.yaml", "ds_configs/zero3.json", "launch/slurm.sbatch", "launch/env.sh"):
        assert (place / "mine" / name).read_bytes() == (tmp_path / "venv/site/ijepa_ds/shipped" / name).read_bytes()
    (place / "mine/configs/in1k_vith14.yaml").write_text("mine\n")
    done = installed("ijepa_ds.cli", "copy-examples", "mine")
    assert done.returncode == 2 and "mine/configs/in1k_vith14.yaml" in done.stderr
    assert (place / "mine/configs/in1k_vith14.yaml").read_text() == "mine\n"


@pytest.mark.slow
def test_the_installed_trainer_trains_by_the_name_of_an_example(installed: Callable, tmp_path: Path) -> None:
    prepare(tmp_path / "place")
    files = ["--config", "configs/cifar10_tiny.yaml", "--deepspeed_config", "ds_configs/zero2.json"]
    words = [*TINY, "masks.context_tokens=8", "optimization.steps=2", "optimization.warmup_steps=1", "run.dir=out"]
    done = installed("ijepa_ds.train", *files, *words)
    assert (tmp_path / "place/out/completed.json").is_file(), done.stdout + done.stderr


def test_the_revision_is_ours_or_none(installed: Callable, tmp_path: Path) -> None:
    """The unpacked wheel lies in a folder of another project's repository."""
    script = "import ijepa_ds, runpy; from ijepa_ds.versions import versions; print(versions()['git_revision'])"
    (tmp_path / "place" / "told.py").write_text(script)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    assert installed("told").stdout == "None\n"


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
