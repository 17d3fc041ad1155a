"""The command that `tests/cluster/test_supervise.py` supervises: `stand_in.py RUN DEED...` does the n-th deed in its n-th call.

Deeds joined by + are done in order.

save:N  a whole checkpoint of step N        complete  the marker of a finished run      exit:CODE, kill:SIGNAL
stop    the marker of a stop on request     note:CODE  as a rank that exits with it
train   as a rank that trains: a request to stop saves one more step and ends with 75   refuse  the same, but cannot save
launch:DEED,DEED  as DeepSpeed's launcher: does them in a child and takes its exit code  leave:DEED,DEED  ends before it
hang    sleeps and takes no signals         deaf      sleeps and ignores SIGTERM
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ijepa_ds import exits


def save(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "shard").write_text("x")
    files = [{"file": "shard", "bytes": 1, "sha256": "not read"}]
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "step": step, "adam_step": step, "files": files}))


def train(run: Path, saves: bool) -> None:
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda n, _: asked.append(n))
    (run / f"rank-{os.getpid()}").touch()
    while not asked:
        time.sleep(0.02)
    time.sleep(0.3)  # what a save takes
    if not saves:
        sys.exit(1)
    (run / "asked").write_text(signal.Signals(asked[0]).name)
    (run / "stopped.json").write_text("{}")
    save(run, 1 + max((int(path.name[5:]) for path in run.glob("checkpoints/step_*")), default=0))
    sys.exit(75)


def do(run: Path, deed: str) -> None:
    what, _, value = deed.partition(":")
    if what == "save":
        save(run, int(value))
    elif what == "complete":
        from ijepa_ds.checkpoint.run_dir import mark_completed  # late: it imports PyTorch

        mark_completed(run, {})
    elif what == "stop":
        (run / "stopped.json").write_text("{}")
    elif what == "note":
        exits.note(int(value))
    elif what == "exit":
        sys.exit(int(value))
    elif what == "kill":
        os.kill(os.getpid(), int(value))
    elif what in ("train", "refuse"):
        train(run, what == "train")
    elif what in ("launch", "leave"):
        child = subprocess.Popen([sys.executable, __file__, str(run), "child", *value.split(",")])
        if what == "launch":
            sys.exit(child.wait())
        while not list(run.glob("rank-*")):
            time.sleep(0.02)
    elif what in ("hang", "deaf"):
        if what == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (run / f"rank-{os.getpid()}").touch()
        time.sleep(300)


def main() -> None:
    run, deeds = Path(sys.argv[1]), sys.argv[2:]
    if deeds[0] == "child":
        for deed in deeds[1:]:
            do(run, deed)
        return
    run.mkdir(exist_ok=True)
    calls = run / "calls"
    with calls.open("a") as file:
        file.write(f"{time.monotonic()} {os.getpid()}\n")
    for deed in deeds[min(len(calls.read_text().splitlines()), len(deeds)) - 1].split("+"):
        do(run, deed)


if __name__ == "__main__":
    main()
