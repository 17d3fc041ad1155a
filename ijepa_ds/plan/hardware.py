"""Device specifications: built-in, from a YAML file, or measured on this CPU."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ijepa_ds import machine
from ijepa_ds.model.peaks import DATA_SHEET

GIB, GB, TERA = 2**30, 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """One device and its links.

    Attributes:
        name: Name in tables.
        memory_gib: GiB that a process can use.
        bfloat16_tflops: Dense matrix products, 10^12 FLOPs a second.
        float32_tflops: The same with float32 inputs (TF32 off).
        memory_gbps: Memory bandwidth, 10^9 bytes a second.
        link_gbps: Bandwidth to the other devices of its machine, per direction, 10^9 bytes a second.
        network_gbps: Bandwidth to other machines, per direction and device, 10^9 bytes a second.
        products_share: Share of the peak rate that large matrix products reach.
        attention_share: The same for the products inside attention.
        memory_share: Share of the bandwidth that norms, sums, GELU and the optimizer reach.
        link_us: Latency of a hop to a device of its machine, microseconds.
        network_us: Latency of a hop to another machine, microseconds.
        host: Time of the machine's host relative to the one that was measured (docs/plan.md).
        asynchronous: The host runs ahead of the device; a CPU is its own host.
        margin: Expected range of a step time, as multiples of the calculated one.
    """

    name: str
    memory_gib: float
    bfloat16_tflops: float
    float32_tflops: float
    memory_gbps: float
    link_gbps: float
    network_gbps: float
    # One H100: products at 778 of 989 TFLOP/s; attention's kernels of ViT-H in 23.5 ms; all other kernels in 109 ms.
    products_share: float = 0.787
    attention_share: float = 0.093
    memory_share: float = 0.45
    # NVLink and InfiniBand in NCCL's own model (`plan/latency.py`)
    link_us: float = 3.4
    network_us: float = 9.6
    host: float = 1.0
    asynchronous: bool = True
    margin: tuple[float, float] = (1 / 1.15, 1.15)

    def flops(self, weight_bytes: int) -> float:
        """Return the peak FLOPs a second for weights of 2 or 4 bytes."""
        return TERA * (self.bfloat16_tflops if weight_bytes == 2 else self.float32_tflops)


# Vendors' data sheets (SXM boards). Network: an assumption, one port per GPU, 200 Gbit/s (A100) or 400 Gbit/s.
# name: row of DATA_SHEET; memory_gib, memory_gbps, link_gbps, network_gbps
_ROWS: dict[str, tuple[str, tuple[float, float, float, float]]] = {
    "a100-40g": ("a100", (39.5, 1555, 300, 25)),
    "a100-80g": ("a100", (79.2, 2039, 300, 25)),
    "h100": ("h100", (79.2, 3350, 450, 50)),
    "h200": ("h200", (139.8, 4800, 450, 50)),
    "b200": ("b200", (178, 7700, 900, 50)),
}
DEVICES = {
    name: Device(name, gib, *DATA_SHEET[chip], memory, link, network)
    for name, (chip, (gib, memory, link, network)) in _ROWS.items()
}


def device_of(name: str, ranks_on_machine: int) -> Device:
    """Return the device called `name`.

    Args:
        name: A row of `DEVICES`, `cpu`, or a YAML file with the fields of `Device`.
        ranks_on_machine: Ranks that share the CPU, for `cpu`.

    Raises:
        ValueError: The name is unknown, or the file has missing, unknown or invalid keys; the text lists all of them.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name == "cpu":
        return measured_cpu(ranks_on_machine)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--gpu {name}: unknown; choose {', '.join(DEVICES)}, cpu, or a YAML file (docs/plan.md)")
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--gpu {path}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"--gpu {path}: cannot be read as YAML: {error}") from error
    return _from_tree(path, tree)


def _from_tree(path: Path, tree: object) -> Device:
    names = [item.name for item in fields(Device) if item.name not in ("asynchronous", "margin")]
    optional = {"name": None} | {item.name: item.default for item in fields(Device) if isinstance(item.default, float)}
    if not isinstance(tree, dict):
        raise ValueError(f"--gpu {path}: expected a section with the keys {', '.join(names)}")
    problems = [f"{path}: {key}: unknown key (known: {', '.join(names)})" for key in tree if key not in names]
    problems += [f"{path}: {key}: missing" for key in names if key not in tree and key not in optional]
    values: dict[str, Any] = {}
    for key in names[1:]:
        value = tree.get(key, optional.get(key, 1.0))
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            problems.append(f"{path}: {key}: expected a number above 0, found {value!r}")
        else:
            values[key] = float(value)
    if problems:
        raise ValueError("\n".join(problems))
    return Device(name=str(tree.get("name", path.stem)), **values)


def measured_cpu(ranks: int) -> Device:
    """Measure this machine's CPU in about a second, shared by `ranks` ranks of one thread each.

    The bandwidth between ranks is estimated as a quarter of the memory bandwidth, because a message is written and read
    twice.
    """
    import numpy as np

    rate = _best(lambda a, b: np.dot(a, b), np.ones((768, 768), np.float32), 2.0 * 768**3)
    copied = _best(lambda a, b: np.copyto(a, b), np.ones(8 << 20, np.float32), 8.0 * (8 << 20))
    cores = machine.cores()
    # numpy's matrix product uses OMP_NUM_THREADS threads; a rank has its share of the cores
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores)
    share = min(1.0, cores / (threads * ranks))
    return Device(
        name=f"cpu (this machine, {ranks} rank{'s' if ranks > 1 else ''})",
        memory_gib=machine.memory_bytes() / GIB / ranks,
        bfloat16_tflops=rate * share / TERA,
        float32_tflops=rate * share / TERA,
        memory_gbps=copied / ranks / GB,
        link_gbps=copied / ranks / 4 / GB,
        network_gbps=1.25,
        products_share=1.0,
        attention_share=1.0,
        memory_share=1.0,
        asynchronous=False,
        margin=(1 / 0.75, 1 / 0.40),  # between the measured rates and what a step reaches: an assumption
    )


def _best(work: object, operand: object, amount: float) -> float:
    """Return the best rate of a few repetitions: `amount` per second."""
    import copy

    other, best = copy.deepcopy(operand), float("inf")
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        start = time.perf_counter()
        work(operand, other)  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return amount / best
