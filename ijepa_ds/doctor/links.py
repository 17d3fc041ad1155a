"""Measures collectives between all ranks: `python -m ijepa_ds.doctor.links` starts this host's ranks and prints results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

from ijepa_ds.cluster.environment import settle
from ijepa_ds.doctor.probe import MARK

_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}  # message size, similar to a DeepSpeed gradient bucket
_TIMES = {"cpu": 5, "cuda": 20}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Check and time all-reduce and all-gather on one rank.

    Returns:
        GB/s of each as NCCL's bus bandwidth: 2 (n - 1) / n and (n - 1) / n of the message per second.
    """
    import torch
    import torch.distributed as dist

    kind = request["device"]
    device = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=request["timeout"]))
    rank, world = dist.get_rank(), dist.get_world_size()
    numbers = torch.full((_BYTES[kind] // 4 // world * world,), float(rank + 1), device=device)
    gathered = torch.empty_like(numbers)
    share = numbers[: numbers.numel() // world].clone()
    found: dict[str, Any] = {"rank": rank, "backend": backend}
    work = {
        "all_reduce": (lambda: dist.all_reduce(numbers), 2 * (world - 1) / world),
        "all_gather": (lambda: dist.all_gather_into_tensor(gathered, share), (world - 1) / world),
    }
    for name, (collective, passes) in work.items():
        collective()
        if name == "all_reduce" and not bool((numbers == world * (world + 1) / 2).all()):
            raise RuntimeError("an all-reduce gave wrong sums")
        _wait(kind)
        began = time.perf_counter()
        for _ in range(_TIMES[kind]):
            collective()
        _wait(kind)
        seconds = (time.perf_counter() - began) / _TIMES[kind]
        found[name] = passes * numbers.numel() * 4 / seconds / 1e9
    if [float(gathered[i * share.numel()]) for i in range(world)] != [float(i + 1) for i in range(world)]:
        raise RuntimeError("an all-gather gave wrong values")
    dist.barrier()
    dist.destroy_process_group()
    return found


def _wait(kind: str) -> None:
    import torch

    if kind == "cuda":
        torch.cuda.synchronize()


def start(request: dict[str, Any]) -> dict[str, Any]:
    """Run this host's ranks as processes until all have ended; return {"ranks": [...], "errors": [...]}."""
    command = [sys.executable, "-m", "ijepa_ds.doctor.links", "--rank"]
    running = []
    for local in range(request["slots"]):
        environment = os.environ | {
            "RANK": str(request["first"] + local),
            "LOCAL_RANK": str(local),
            "LOCAL_SIZE": str(request["slots"]),
            "WORLD_SIZE": str(request["world"]),
            "MASTER_ADDR": request["master"],
            "MASTER_PORT": str(request["port"]),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload]
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        process.stdin = None
        running.append(process)
    end, ranks, errors = time.monotonic() + request["timeout"] + 20, [], []
    for local, process in enumerate(running):
        try:
            out, err = process.communicate(timeout=max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            err += "\nno answer in time"
        line = next((line for line in out.splitlines() if line.startswith(MARK)), None)
        if line:
            ranks.append(json.loads(line.removeprefix(MARK)))
        else:
            last = [text for text in err.splitlines() if text.strip()]
            errors.append(f"rank {request['first'] + local}: {last[-1].strip() if last else f'exit code {process.returncode}'}")
    return {"ranks": ranks, "errors": errors}


def main() -> int:
    """Run one rank (`--rank`), or start all ranks of this host."""
    request = json.load(sys.stdin)
    if "--rank" in sys.argv:
        settle(os.environ)
        found = measure(request)
    else:
        found = start(request)
    print(f"\n{MARK}{json.dumps(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
