"""The example of docs/ema.md is a program: it runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dist.launched import REPOSITORY, environment, finished
from tests.dist.pool import free_port
from tests.waiting import limit

pytestmark = pytest.mark.dist


@pytest.mark.parametrize(
    ("ranks", "stage", "launcher"),
    [(0, 2, False), (2, 3, False), pytest.param(2, 3, True, marks=[pytest.mark.slow, pytest.mark.nightly])],
)
def test_the_example_runs(ranks: int, stage: int, launcher: bool, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "ema.md").read_text(), flags=re.DOTALL)
    assert '{"stage": 3}' in program
    (tmp_path / "distil.py").write_text(program.replace('{"stage": 3}', f'{{"stage": {stage}}}'))
    if launcher:
        deepspeed = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks)]
        command = [*deepspeed, "--master_port", str(free_port()), "distil.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=limit(600))
    else:
        done = finished(tmp_path, [], ranks, program="distil.py")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"loss (\d\.\d{4}), (\d+) averaged numbers", done.stdout)
    assert len(lines) == max(ranks, 1)
    parameters = 16 * 64 + 64 + 64 + 64 + 64 * 32 + 32
    assert all(int(numbers) <= parameters / max(ranks, 1) + 16 for _, numbers in lines)
