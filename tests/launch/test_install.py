"""launch/install.sh on made-up machines: what it asks for, when it installs, and when it has nothing to do."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = "awk bash cat cksum cp cut date df dirname flock grep ls mkdir mv rm sed sha256sum sleep touch".split()
# A quick Python: it answers questions as the real one, `-m venv` makes a folder, pip and the compilation are only noted
# in the file $CALLS; pip fails when the file $PIP_FAILS is there.
PYTHON = f"""#!/bin/bash
case "$1 $2" in
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "version = 3.12.1" >"$3/pyvenv.cfg" ;;
    "-m pip") echo "pip $* in $PWD" >>"$CALLS"; [ ! -e "$PIP_FAILS" ] ;;
    *) exec {sys.executable!r} "$@" ;;
esac
"""


def write_script(file: Path, text: str) -> None:
    file.write_text(text)
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


class Machine:
    """A checkout with blanks in its path, and a PATH that has only what is put there."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.repository = root / "a checkout"
        self.venv, self.bin, self.calls, self.pip_fails = root / "venv", root / "bin", root / "calls", root / "fails"
        shutil.copytree(repository / "launch", self.repository / "launch")
        for name in ("setup.py", "pyproject.toml"):
            shutil.copy(repository / name, self.repository / name)
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool) or f"/usr/bin/{tool}")
        write_script(self.bin / "python3", PYTHON)
        write_script(self.bin / "df", "#!/bin/bash\necho head; echo disk 0 0 99000000 0% /\n")

    def install(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.repository.parent),
            "VENV": str(self.venv),
            "CALLS": str(self.calls),
            "PIP_FAILS": str(self.pip_fails),
            "CUDA_VISIBLE_DEVICES": "",  # whatever this machine has, the made-up one has no GPU
        }
        return subprocess.run(
            ["bash", str(self.repository / "launch" / "install.sh"), *arguments],
            env=environment | variables,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )

    def called(self) -> list[str]:
        """What pip was asked since the last time."""
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def machine(tmp_path: Path, repository: Path) -> Machine:
    return Machine(tmp_path, repository)


def test_a_first_call_installs_and_a_second_does_nothing(machine: Machine) -> None:
    first = machine.install()
    assert first.returncode == 0, first.stderr
    assert machine.called() == [
        f"pip -m pip install pip>=23 in {machine.repository}",
        f"pip -m pip install -e .[dali] in {machine.repository}",
    ]
    again = machine.install()
    assert (again.returncode, again.stdout) == (0, f"{machine.venv} is ready\n")
    assert machine.called() == []


def test_test_tools_are_an_extra_that_contains_the_base(machine: Machine) -> None:
    machine.install()
    machine.called()
    assert machine.install("test").returncode == 0
    assert f"pip -m pip install -e .[dali,test] in {machine.repository}" in machine.called()
    machine.install()
    machine.install("test")
    assert machine.called() == []
    wrong = machine.install("tests")
    assert wrong.returncode == 2
    assert "'tests'?" in wrong.stderr


def test_test_all_installs_the_programs_of_optional_tests(machine: Machine) -> None:
    machine.install("test")
    machine.called()
    write_script(machine.bin / "dpkg-query", '#!/bin/bash\n[[ $* != *iproute2* ]] || echo "install ok installed"\n')
    without_apt = machine.install("test-all")
    assert without_apt.returncode == 1 and "needs apt-get" in without_apt.stderr and "chromium" in without_apt.stderr
    assert "iproute2" not in without_apt.stderr
    (machine.bin / "env").symlink_to(shutil.which("env") or "/usr/bin/env")
    write_script(machine.bin / "id", "#!/bin/bash\necho 0\n")
    write_script(machine.bin / "apt-get", '#!/bin/bash\necho "apt-get $*" >>"$CALLS"\n[[ $* != *slurmd ]]\n')
    partly = machine.install("test-all")
    assert partly.returncode == 1 and "could not install slurmd;" in partly.stderr
    first, *installed = machine.called()
    assert first == "apt-get update" and all("install -y" in line for line in installed)
    names = [line.split()[-1] for line in installed]
    assert {"chromium", "openssh-server", "pdsh", "munge", "slurmctld", "libaio-dev"} < set(names) and "iproute2" not in names
    write_script(machine.bin / "dpkg-query", '#!/bin/bash\necho "install ok installed"\n')
    again = machine.install("test-all")
    assert (again.returncode, machine.called()) == (0, []), again.stderr


@pytest.mark.parametrize("file", ["setup.py", "pyproject.toml", "launch/install.sh"])
def test_a_changed_recipe_is_installed_into_the_same_environment(file: str, machine: Machine) -> None:
    machine.install()
    machine.called()
    (machine.venv / "kept").touch()
    with (machine.repository / file).open("a") as text:
        text.write("\n# changed\n")
    assert machine.install().returncode == 0
    assert len(machine.called()) == 2
    assert (machine.venv / "kept").exists()


def test_an_interrupted_install_is_thrown_away_and_made_again(machine: Machine) -> None:
    machine.pip_fails.touch()
    failed = machine.install()
    assert failed.returncode == 1
    assert "pip failed" in failed.stderr
    assert machine.called() == [f"pip -m pip install pip>=23 in {machine.repository}"]
    (machine.venv / "half-unpacked").touch()
    machine.pip_fails.unlink()
    second = machine.install()
    assert second.returncode == 0, second.stderr
    assert "making it again" in second.stdout
    assert len(machine.called()) == 2
    assert not (machine.venv / "half-unpacked").exists()


def test_the_other_dali_or_another_python_makes_another_environment(machine: Machine) -> None:
    machine.install()
    (machine.venv / "old").touch()
    machine.called()
    assert machine.install(DALI="cuda12").returncode == 0
    assert f"pip -m pip install -e .[dali-cuda12] in {machine.repository}" in machine.called()
    assert not (machine.venv / "old").exists()
    other = machine.bin / "python-of-mine"
    shutil.copy(machine.bin / "python3", other)
    (machine.venv / "old").touch()
    assert machine.install(DALI="cuda12", PYTHON=str(other)).returncode == 0
    assert not (machine.venv / "old").exists()
    machine.called()
    assert machine.install(DALI="cuda12").returncode == 0
    assert machine.called() == []


def test_everything_missing_is_named_at_once(machine: Machine) -> None:
    write_script(machine.bin / "python3", "#!/bin/bash\nexit 1\n")  # what an older Python answers
    write_script(machine.bin / "df", "#!/bin/bash\necho head; echo disk 0 0 5000000 0% /\n")
    refused = machine.install(DALI="cuda11")
    assert refused.returncode == 1
    for words in (
        "Python 3.10 or newer: tried python3",
        f"10 GB of disk: 5 are free in {machine.venv.parent}",
        "a known DALI: 'cuda11'",
    ):
        assert words in refused.stderr
    assert not machine.venv.exists()
    assert machine.called() == []


def test_a_python_without_venv_is_refused_and_a_newer_one_on_the_path_found(machine: Machine) -> None:
    whole = machine.bin / "python3"
    shutil.move(whole, machine.bin / "python3.11")
    write_script(whole, "#!/bin/bash\nexit 1\n")
    assert machine.install().returncode == 0
    shutil.rmtree(machine.venv)
    write_script(whole, '#!/bin/bash\n[[ "$2" == *version_info* ]]\n')
    refused = machine.install()
    assert refused.returncode == 1
    assert f"the venv module of {whole}" in refused.stderr


def test_a_folder_that_is_not_ours_is_left_alone(machine: Machine) -> None:
    machine.venv.mkdir()
    (machine.venv / "thesis.tex").touch()
    refused = machine.install()
    assert refused.returncode == 1
    assert "was not made by this script" in refused.stderr
    assert (machine.venv / "thesis.tex").exists()


def test_blanks_in_the_path_of_the_environment(machine: Machine) -> None:
    refused = machine.install(VENV=str(machine.repository / "venv"))
    assert refused.returncode == 1
    assert "a path without blanks" in refused.stderr
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere/someone", "XDG_CACHE_HOME": ""}
    script = f'source "{machine.repository}/launch/env.sh"; echo "$VENV"'
    chosen = subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True, check=True)
    assert chosen.stdout.startswith("/nowhere/someone/.cache/ijepa_ds/venv-")
    assert " " not in chosen.stdout


def test_scripts_parse(repository: Path) -> None:
    scripts = [*(repository / "launch").glob("*.sh"), repository / ".ci" / "run"]
    assert len(scripts) >= 5
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize("exists", [True, False])
def test_a_shell_without_an_environment_is_told_so(exists: bool, repository: Path, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "bin").mkdir()
        write_script(tmp_path / "bin" / "python", "")
    script = tmp_path / "script.sh"  # one that makes the environment itself
    script.write_text(f"source '{repository}/launch/env.sh'")
    for command, says in ((["-c", script.read_text()], not exists), ([str(script)], False)):
        done = subprocess.run(
            ["bash", *command], env=os.environ | {"VENV": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        assert (f"there is no environment at {tmp_path}" in done.stderr) == says, done.stderr
