"""`ijepa-ds scale LADDER.yaml`: run or plan a ladder of models times budgets, fit power laws, predict the next rung."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from ijepa_ds.durable import write_text
from ijepa_ds.scale import execute, ladder
from ijepa_ds.scale.ladder import Ladder
from ijepa_ds.scale.rung import Rung

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Plan, or run unfinished rungs and report all results; exit code 1 if a plan does not fit in memory.

    Raises:
        ValueError: lists all problems.
    """
    whole = ladder.read(args.ladder, args.overrides)
    chosen = whole.chosen(args.only)
    if args.plan:
        return _plan(whole, chosen, args.json)
    code = 0 if args.results else execute.run_ladder(whole, chosen)
    if code == 0:
        _report(whole)
    return code


def _plan(whole: Ladder, chosen: Sequence[Rung], out: Path | None) -> int:
    from ijepa_ds.scale import paper

    rungs = [*chosen, *([whole.next] if whole.next else [])]
    plans = paper.plans_of(rungs)
    logger.info("%s", paper.table(rungs, plans))
    if out:
        write_text(out, json.dumps([paper.to_dict(r, p) for r, p in zip(rungs, plans, strict=True)], indent=1) + "\n")
    return 0 if all(plan.fits for plan in plans) else 1


def _report(whole: Ladder) -> None:
    """Write results.json, results.csv and scaling.png into the ladder's folder, and print the tables."""
    from ijepa_ds.scale import paper, picture, results, tables

    found = results.collect(whole)
    rows = found["rungs"]
    laws = results.laws(whole, rows)
    found["laws"] = {title: results.plain(law) for title, law in laws.items()}
    found["next"] = paper.predict(whole, rows, laws)
    whole.out.mkdir(parents=True, exist_ok=True)
    write_text(whole.out / "results.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_text(whole.out / "results.csv", results.to_csv(rows))
    picture.write(whole.out / "scaling.png", whole, rows, laws)
    logger.info("%s", tables.text(whole, found))
    logger.info("written: %s", ", ".join(str(whole.out / name) for name in ("results.json", "results.csv", "scaling.png")))
