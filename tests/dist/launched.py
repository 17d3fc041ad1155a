"""Whole training runs in processes of their own, through the real `train.main`, started in a tenth of a second.

A server process imports the package once; each rank is a fork of it (`multiprocessing`'s forkserver), with its own
environment, folder and output file, and a session of its own. Nothing else of a run is different, and no launcher is there to
clean up: what ends the other ranks after a fault is our own code.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.dist.pool import check_preloaded, forks, free_port
from tests.processes import end_with_pytest
from tests.waiting import limit, wait_until

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "run.log_every=1",
    "data.crop_size=32",
    "data.source=images",
    "model.name=tiny",
    "model.patch_size=8",
    "model.width=32",
    "model.depth=1",
    "model.heads=2",
    "model.predictor.depth=1",
    "model.predictor.width=16",
    "masks.sampler=unbiased",
    "masks.target_scale=[0.1, 0.2]",
    "optimization.batch_size=8",
    "optimization.warmup_steps=2",
    "optimization.lr=0.001",
]
TINY = [*SMALL, "run.probe_every=1000", "run.picture_every=0", "data.loader=torchvision", "model.precision=float32"]


def environment(*folders: Path) -> dict[str, str]:
    """For a process started as a user starts it: imports from this checkout and `folders`, computes on one CPU thread.

    Without Torch's compiler, which DeepSpeed loads when it is imported: 2 s of CPU a process. Without the size of the
    terminal in which the tests run, which a program would believe more than its own.
    """
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "COLUMNS", "LINES")
    path = ":".join(map(str, (REPOSITORY, *folders)))
    given = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
    return {name: value for name, value in os.environ.items() if name not in ours} | given


def prepare(place: Path, images: int = 24) -> Path:
    """Fill a folder with small pictures and a YAML."""
    for i in range(images):
        (place / "images" / f"class{i % 3}").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "images" / f"class{i % 3}" / f"{i}.jpg")
    (place / "run.yaml").write_text("run: {dir: out}\noptimization: {batch_size: 8, steps: 6, warmup_steps: 1}\n")
    for stage in range(4):
        text = (REPOSITORY / "ds_configs" / f"zero{stage}.json").read_text()
        (place / f"zero{stage}.json").write_text(text)
    return place


class Run:
    """The ranks of one run."""

    def __init__(
        self,
        place: Path,
        *overrides: str,
        ranks: int = 2,
        stage: int = 2,
        faults: list[dict[str, Any]] | None = None,
        samples: Path | None = None,
        absent: Sequence[int] = (),
    ) -> None:
        """Start them in `place`.

        Args:
            place: their folder.
            overrides: of the configuration.
            ranks: how many.
            stage: of ZeRO.
            faults: see `faults.inject`.
            samples: a folder for the log of images, see `faults.log_samples`.
            absent: ranks that end at once instead.
        """
        context = forks()
        self._log = place / f"output-{time.monotonic_ns()}.txt"
        port, arguments = free_port(), ["--config", "run.yaml", "--deepspeed_config", f"zero{stage}.json", *TINY, *overrides]
        self.ranks = [
            context.Process(
                target=_absent if rank in absent else _rank,
                args=(rank, ranks, port, str(place), str(self._log), arguments, faults or [], samples),
            )
            for rank in range(ranks)
        ]
        for process in self.ranks:
            process.start()

    @property
    def output(self) -> str:
        """What all ranks have printed."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def wait(self, timeout: float = 300) -> list[int]:
        """The exit codes of all ranks; -N after signal N.

        Raises:
            AssertionError: some did not end; they are killed.
        """
        end = time.monotonic() + limit(timeout)
        for process in self.ranks:
            process.join(max(0.0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(self.ranks) if process.is_alive()]
        for rank in late:
            self.signal(rank, signal.SIGKILL)
            self.ranks[rank].join()
        assert not late, f"ranks {late} did not end within {limit(timeout):.0f} s:\n{self.output}"
        return [process.exitcode or 0 for process in self.ranks]

    def wait_for(self, text: str, timeout: float = 300) -> None:
        """Until the output holds `text`."""

        def printed() -> bool:
            alive = any(process.is_alive() for process in self.ranks)
            there = text in self.output  # read after `alive`: a rank may print it and end
            assert there or alive, f"ended without '{text}':\n{self.output}"
            return there

        wait_until(printed, timeout, lambda: f"'{text}' in\n{self.output}")

    def kill(self) -> None:
        """End the ranks that are left."""
        for process in self.ranks:
            process.kill()
            process.join()

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        os.kill(self.ranks[rank].pid or 0, number)


def finished(
    place: Path,
    arguments: list[str],
    ranks: int,
    timeout: float = 600,
    program: str = "ijepa_ds.train",
    port: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and return what `subprocess.run` would return.

    Args:
        place: the folder it runs in.
        arguments: of its command line.
        ranks: how many processes; 0: one process without a launcher's variables.
        timeout: seconds.
        program: a module, or a Python file in `place`.
        port: of rank 0's store; by default a free one.
    """
    context = forks()
    out, err = (place / f"{name}-{time.monotonic_ns()}.txt" for name in ("stdout", "stderr"))
    port = port or free_port()
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, str(place), str(out), arguments, [], None, str(err), program))
        for rank in range(max(1, ranks))
    ]
    for process in processes:
        process.start()
    end, ended_others = time.monotonic() + limit(timeout), False
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        if not ended_others and any(process.exitcode for process in processes):
            for process in processes:
                process.terminate()  # as DeepSpeed's launcher does when a rank fails
            ended_others = True
        time.sleep(0.02)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    assert not late, f"{len(late)} of {len(processes)} ranks did not end within {limit(timeout):.0f} s:\n" + "\n".join(texts)
    code = next((process.exitcode for process in processes if process.exitcode), 0)
    return subprocess.CompletedProcess(arguments, code, *texts)


def _absent(*_: object) -> None:
    """A rank that dies before it does anything."""


def _rank(
    rank: int,
    ranks: int,
    port: int,
    place: str,
    log: str,
    arguments: list[str],
    faults: list[dict[str, Any]],
    samples: Path | None,
    error_log: str | None = None,
    program: str = "ijepa_ds.train",
) -> None:
    os.setsid()
    end_with_pytest()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that a script started behind itself ignore it
    for path, descriptor in ((log, 1), (error_log or log, 2)):
        with open(path, "ab", buffering=0) as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(place)
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu")
    if ranks:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    check_preloaded()
    import torch

    torch.set_num_threads(1)
    from ijepa_ds import train
    from tests.dist import faults as injected

    injected.inject(rank, faults)
    if samples:
        injected.log_samples(samples, rank)
    try:
        if program == "ijepa_ds.train":
            sys.exit(train.main(arguments))
        sys.argv = [program, *arguments]
        sys.path.insert(0, place)
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def read_completed(run: Path) -> dict[str, Any]:
    """The marker of a run that reached its end."""
    return json.loads((run / "completed.json").read_text())
