"""Runs to their end through the real entry points, and what they left: exit code, messages, losses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.dist.launched import REPOSITORY, SMALL, environment, finished
from tests.dist.pool import free_port
from tests.waiting import limit

DEEPSPEED = str(Path(sys.executable).parent / "deepspeed")
PICTURED = [*SMALL, "run.probe_every=2", "run.picture_every=3"]


def start(
    place: Path,
    *overrides: str,
    ranks: int = 0,
    stage: int = 2,
    monitor: bool = False,
    program: str = "ijepa_ds.train",
    port: int | None = None,
    command: bool = False,
) -> subprocess.CompletedProcess[str]:
    """A run to its end: its ranks forked (`launched.finished`), which saves nine seconds of imports a process.

    With `command` as a user starts it: `ranks` = 0: python -m; else the deepspeed launcher.
    `monitor`: with DeepSpeed's own TensorBoard block.
    """
    spread = json.loads((REPOSITORY / "ds_configs" / f"zero{stage}.json").read_text())
    if monitor:
        spread["tensorboard"] = {"enabled": True, "output_path": "monitor", "job_name": "deepspeed"}
    (place / "spread.json").write_text(json.dumps(spread))
    arguments = ["--config", "run.yaml", "--deepspeed_config", "spread.json"]
    if not command:
        return finished(place, [*arguments, *PICTURED, *overrides], ranks, program=program, port=port)
    launcher = [sys.executable, "-m"]
    if ranks:
        launcher = [DEEPSPEED, "--num_gpus", str(ranks), "--master_port", str(free_port()), "--module"]
    return subprocess.run(
        [*launcher, program, *arguments, *PICTURED, *overrides],
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
        timeout=limit(600),
    )


def losses(run: Path) -> dict[int, float]:
    """Loss of every step, from TensorBoard's files; a later attempt's points win."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for file in sorted(run.glob("events.*"), key=lambda p: p.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        found |= {point.step: point.value for point in events.Scalars("loss")}
    return found


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The message of a refused run: one, without a traceback."""
    assert result.returncode != 0
    assert result.stderr.count("ijepa_ds cannot run this") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr
