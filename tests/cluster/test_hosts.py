"""Hostfiles, overrides and exported variables: what a launcher or a remote shell could be made to run is refused."""

import ast
from pathlib import Path

import pytest

from ijepa_ds.cluster import hosts
from ijepa_ds.cluster.hosts import Host

EVIL = ["a;touch x", "$(touch x)", "`touch x`", "a|b", "a&b", "a>b", "a\nb", "a b", "", "a'b", 'a"b', "root@a"]
EVIL += ["-oProxyCommand=touch", "^file"]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_hostfile_is_read_as_deepspeed_reads_it(repository: Path, tmp_path: Path) -> None:
    text = "# two\n\n node-0 slots=8\n10.0.0.2   slots=4 # old\n2001:db8::2 slots=1\nA_b.c slots=1\n"
    file = write(tmp_path / "hostfile", text)
    expected = [Host("node-0", 8), Host("10.0.0.2", 4), Host("2001:db8::2", 1), Host("A_b.c", 1)]
    assert hosts.parse_hostfile(file) == expected
    assert len(hosts.parse_hostfile(repository / "launch" / "hostfile.example")) == 2


@pytest.mark.parametrize("name", EVIL)
def test_what_is_no_host_name_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    assert not hosts.is_host_name(name)
    with pytest.raises(ValueError, match=r"hostfile:[23]: "):
        hosts.parse_hostfile(write(tmp_path / "hostfile", f"good slots=1\n{name} slots=1\n"))


def test_all_wrong_lines_are_named_at_once(tmp_path: Path) -> None:
    file = write(tmp_path / "hostfile", "a slots=1\na slots=2\nb\nc slots=0\nd slots=x\n$(id) slots=1\n")
    with pytest.raises(ValueError) as caught:
        hosts.parse_hostfile(file)
    for number, word in ((2, "line 1"), (3, "expected"), (4, "slots=0"), (5, "expected"), (6, "not a host name")):
        assert any(f":{number}: " in line and word in line for line in str(caught.value).splitlines()), caught.value
    with pytest.raises(ValueError, match="no hosts"):
        hosts.parse_hostfile(write(tmp_path / "hostfile", "# nothing\n"))
    with pytest.raises(ValueError, match="cannot be read"):
        hosts.parse_hostfile(tmp_path / "absent")


@pytest.mark.parametrize("value", ["x;touch y", "$(touch y)", "`touch y`", "x\ntouch y", "x && touch y", "x | y", "x > y"])
def test_an_override_that_a_remote_shell_would_run_is_refused_by_training(value: str, tmp_path: Path) -> None:
    from ijepa_ds import train
    from ijepa_ds.training import job

    arguments = train.parse_arguments(["--config", "a.yaml", "--deepspeed_config", "b.json", f"run.dir={value}"])
    with pytest.raises(ValueError, match="would run"):
        job.read(arguments, 1)
    assert hosts.changed_by_shell([f"run.dir={value}"])


def test_harmless_words_pass() -> None:
    words = ["optimization.betas=[0.9,0.95]", "run.dir=runs/a b", "data.source=/data/é-1.tar", "masks.target_scale=[0.1, 0.2]"]
    hosts.check_words(words)
    assert hosts.changed_by_shell(words) == []
    assert hosts.changed_by_shell(["data.source=t-{0..9}.tar", "a=*"]) == ["data.source=t-{0..9}.tar", "a=*"]


def test_a_deepspeed_env(tmp_path: Path) -> None:
    file = write(tmp_path / "env", "PATH=/opt/venv/bin:/usr/bin\nA_1=x=y, z\n")
    assert hosts.parse_environment(file) == {"PATH": "/opt/venv/bin:/usr/bin", "A_1": "x=y, z"}
    bad = write(tmp_path / "env", '# note\nA=$(touch x)\nB=`id`\nC;touch=1\nD="\nE=fine\n\n')
    with pytest.raises(ValueError) as caught:
        hosts.parse_environment(bad)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "2", "3", "4", "5", "7"]


def test_interfaces_of_this_machine() -> None:
    assert all(interface.address.count(".") == 3 for interface in hosts.interfaces())
    assert hosts.interface_towards("127.0.0.1") is None
    for interface in hosts.interfaces():
        if not interface.address.startswith("127."):
            assert hosts.interface_towards(interface.address) == interface


def test_no_shell_is_used_anywhere(repository: Path) -> None:
    """Programs are started from lists of arguments."""
    for file in (repository / "ijepa_ds").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            where = f"{file}:{getattr(node, 'lineno', 0)}"
            assert not (isinstance(node, ast.keyword) and node.arg == "shell"), where
            assert not (isinstance(node, ast.Attribute) and node.attr in ("system", "popen", "getoutput")), where
