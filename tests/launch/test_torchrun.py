"""The torchrun commands of the documentation train: both ranks on one machine, and one rank in each of two torchruns."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dist.launched import TINY, environment, read_completed
from tests.dist.launches import losses
from tests.dist.pool import free_port
from tests.processes import die_with_parent, outputs_of

pytestmark = [pytest.mark.slow, pytest.mark.dist]


def documented(page: Path) -> list[str]:
    """The torchrun commands in a page's blocks of shell, without their comments."""
    blocks = page.read_text().split("```bash\n")[1:]
    lines = "\n".join(block.partition("```")[0] for block in blocks).splitlines()
    return [line.partition("  #")[0].strip() for line in lines if line.startswith("torchrun ")]


def run(commands: list[str], place: Path) -> tuple[list[int], str]:
    """Start them at once in `place`; exit codes, and what all have printed."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = [
        subprocess.Popen(
            shlex.split(command),
            cwd=place,
            env=environment() | {"PATH": tools},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=die_with_parent,
        )
        for command in commands
    ]
    outputs = outputs_of(started, place, 300)
    return [process.returncode for process in started], "\n".join(outputs)


def test_the_documented_commands_train(repository: Path, place: Path) -> None:
    """One machine and two give the same losses; the pages spell the command alike."""
    (plain,) = documented(repository / "docs" / "running.md")
    same, many = documented(repository / "docs" / "launch.md")
    assert plain.split("--config")[0] == same.split("--config")[0]
    arguments = ["--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY, "optimization.steps=3"]
    one = same.partition("--config")[0].replace("--nproc-per-node 8", "--nproc-per-node 2")
    codes, text = run([shlex.join([*shlex.split(one), *arguments, "run.dir=one"])], place)
    assert codes == [0], text
    assert "2 ranks x " in text and read_completed(place / "one")["steps"] == 3

    two = many.replace(" ...", "").replace("--nproc-per-node 8", "--nproc-per-node 1")
    two = two.replace("HOST:29400", f"127.0.0.1:{free_port()}")
    command = shlex.join([*shlex.split(two), *arguments, "run.dir=two"])
    codes, text = run([command, command], place)
    assert codes == [0, 0], text
    assert "2 ranks x " in text and losses(place / "two") == losses(place / "one")


def test_supervise_learns_what_torchrun_does_not_tell(repository: Path, place: Path) -> None:
    """torchrun exits with 1 after any failure; a start that was refused with 2 is not started again."""
    (command,) = documented(repository / "docs" / "running.md")
    command = command.partition("--config")[0].replace("--nproc-per-node 8", f"--nproc-per-node 2 --master-port {free_port()}")
    arguments = ["--config", "run.yaml", "--deepspeed_config", "zero2.json", *TINY, "optimization.batch_size=64"]
    codes, text = run([shlex.join(["ijepa-ds", "supervise", "--", *shlex.split(command), *arguments])], place)
    assert codes == [2] and "not started again" in text and "fewer than one global batch" in text, text
    assert not (place / "out").exists()
