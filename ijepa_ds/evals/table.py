"""`python -m ijepa_ds.evals.table RUN ...`: a Markdown table of all `RUN/eval/*/result.json`, averaged over the runs."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ijepa_ds import terminal

Scores = dict[str, dict[str, list[float]]]  # score -> encoder (trained, untrained, ...) -> a value a run


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 2 when there are no results."""
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.evals.table", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories, of one recipe and several seeds")
    runs = parser.parse_args(argv).runs
    try:
        print(table(collect(runs), len(runs)))
    except ValueError as error:
        terminal.error("ijepa_ds.evals.table", str(error))
        return 2
    return 0


def collect(runs: Sequence[Path]) -> Scores:
    """Collect the scores of all runs.

    Raises:
        ValueError: a run without results, or a score that only some of the runs have.
    """
    results: list[list[tuple[str, dict[str, dict[str, float]]]]] = []  # of each run: folder and columns of its files
    for run in runs:
        files = sorted(run.glob("eval/*/result.json"))
        if not files:
            raise ValueError(f"{run}: no eval/*/result.json in it; `ijepa-ds eval TASK ... --out {run}/eval/TASK` writes one")
        results.append([(file.parent.name, _columns(file)) for file in files])
    times = [Counter(name for _, columns in files for name in columns["trained"]) for files in results]
    twice = {name for counts in times for name, count in counts.items() if count > 1}  # such as `knn` and `all`
    found: Scores = {}
    for folder, columns in itertools.chain.from_iterable(results):
        for column, scores in columns.items():
            for name, value in scores.items():
                row = f"{name} ({folder})" if name in twice else name
                found.setdefault(row, {}).setdefault(column, []).append(value)
    some = [name for name, columns in found.items() if any(len(values) != len(runs) for values in columns.values())]
    if some:
        raise ValueError(f"not every run has each of: {', '.join(some)}")
    return found


def _columns(file: Path) -> dict[str, dict[str, float]]:
    """The scores of each encoder of a result.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return {"trained": result["scores"]} | {name: other["scores"] for name, other in result["baselines"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: damaged ({error}); evaluate the run again") from error


def table(found: Scores, runs: int) -> str:
    """Markdown table: mean and standard deviation over the runs, and the paired gain over each baseline."""
    others = list(dict.fromkeys(column for columns in found.values() for column in columns if column != "trained"))
    lines = [
        "| | " + " | ".join([*others, "trained", *(f"gain over {name}" for name in others)]) + " |",
        "|" + "---|" * (2 + 2 * len(others)),
    ]
    for name, columns in found.items():
        cells = [_spread(columns[other]) if other in columns else "" for other in others] + [_spread(columns["trained"])]
        for other in others:
            pairs = zip(columns["trained"], columns.get(other, ()), strict=False)
            gains = [one - two for one, two in pairs]
            cells.append(_spread(gains, "+") if gains else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    what = "mean ± standard deviation of the runs" if runs > 1 else "one run"
    return "\n".join([*lines, "", f"{runs} runs, {what}" if runs > 1 else what])


def _spread(values: Sequence[float], sign: str = "") -> str:
    return f"{mean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
