"""The example of docs/ema.md is a program: it runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dist.pool import free_port

pytestmark = pytest.mark.dist
REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(("ranks", "stage"), [(0, 2), (2, 3)])
def test_the_example_runs(ranks: int, stage: int, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "ema.md").read_text(), flags=re.DOTALL)
    assert '{"stage": 3}' in program
    (tmp_path / "distil.py").write_text(program.replace('{"stage": 3}', f'{{"stage": {stage}}}'))
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--num_gpus", str(ranks), "--master_port", str(free_port())]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    command = [*(launcher if ranks else [sys.executable]), "distil.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"loss (\d\.\d{4}), (\d+) averaged numbers", done.stdout)
    assert len(lines) == max(ranks, 1)
    parameters = 16 * 64 + 64 + 64 + 64 + 64 * 32 + 32
    assert all(int(numbers) <= parameters / max(ranks, 1) + 16 for _, numbers in lines)
