"""The options of `ijepa-ds scale`."""

from __future__ import annotations

import argparse

from ijepa_ds.arguments import add_json
from ijepa_ds.examples import shipped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("ladder", type=shipped, help="YAML: models, budgets of images, machines (docs/scaling.md)")
    parser.add_argument("--plan", action="store_true", help="run nothing: what every rung needs on its machine")
    parser.add_argument("--results", action="store_true", help="run nothing: tables, laws and picture of what is done")
    parser.add_argument("--only", nargs="+", default=[], metavar="RUNG", help="run only these (MODEL/BUDGET); one job a rung")
    add_json(parser, "with --plan: also write JSON")
    parser.add_argument(
        "--set", nargs="+", default=[], dest="overrides", metavar="section.key=value", help="override keys of every rung"
    )
