"""One schema for all measurements, so that machines and revisions can be compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ijepa_ds.versions import versions


def machine() -> dict[str, Any]:
    """The machine: processor, available cores, threads, GPU, current load, versions."""
    found = {
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "gpus": torch.cuda.device_count()}
    return found | {"versions": versions()}


def record(what: str, unit: str, samples: Sequence[float], config: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Build the record of one measurement.

    Args:
        what: its name, words joined by dots.
        unit: of the samples: s, bytes, FLOP/s, ratio, images/s.
        samples: one value per repeat, at least one.
        config: what was measured: model, batch, stage ...
        **more: further keys.

    Returns:
        what, unit, median, quartiles, repeats, config, and `more`. `machine` is added where they are written.
    """
    low, high = (min(samples), max(samples)) if len(samples) < 4 else _quartiles(samples)
    shown = {"median": statistics.median(samples), "quartiles": [low, high], "repeats": len(samples)}
    return {"what": what, "unit": unit} | shown | {"config": config} | more


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records to a file of JSON lines, each with machine and revision."""
    here = machine()
    with open(path, "a", encoding="utf-8") as file:
        for item in records:
            file.write(json.dumps(item | {"machine": here}) + "\n")


def table(records: Sequence[dict[str, Any]]) -> str:
    """A text table of medians with quartiles."""
    width = max(len(item["what"]) for item in records)
    return "\n".join(
        f"{item['what']:<{width}}  {shown(item['median'], item['unit']):>12}   "
        f"[{shown(item['quartiles'][0], item['unit'])}, {shown(item['quartiles'][1], item['unit'])}] x {item['repeats']}"
        for item in records
    )


def show(verb: str, figures: dict[str, Any], target: Path | None) -> int:
    """Print the records of a verb and write them to `target`, if given; 0.

    Args:
        verb: such as "bench step".
        figures: `records`, `machine`, and optionally a `title`.
        target: a JSON file with `verb`, `machine` and `records`, the same for every verb.
    """
    print(f"\n{figures.get('title', verb)}: median [quartiles] x repeats\n{table(figures['records'])}")
    if target:
        write_json(verb, figures, target)
    return 0


def write_json(verb: str, figures: dict[str, Any], target: Path) -> None:
    """Write the `machine` and `records` of a verb, such as "bench step", to a JSON file, in one schema for all verbs."""
    target.write_text(json.dumps({"verb": verb, "machine": figures["machine"], "records": figures["records"]}, indent=1))


def shown(value: float, unit: str) -> str:
    """A value formatted with its unit."""
    if unit == "s":
        return f"{value:.3f} s" if value >= 1 else f"{1e3 * value:.3f} ms" if value >= 1e-3 else f"{1e6 * value:.1f} us"
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    if unit == "FLOP/s":
        return f"{value / 1e9:,.1f} GFLOP/s"
    return f"{value:.1%}" if unit == "share" else f"{value:.3f} {unit}"


def _quartiles(samples: Sequence[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, high


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")
