"""`deepspeed --num_gpus N --module ijepa_ds.evals TASK ...`: `ijepa-ds eval TASK ...` with features from N ranks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence

from ijepa_ds.arguments import add_local_rank, with_example
from ijepa_ds.options.evals import add_arguments
from ijepa_ds.shown import print_any_name


def main(argv: Sequence[str] | None = None) -> int:
    """Run an evaluation; exit code 2 for errors in the input."""
    print_any_name()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.evals", description="Evaluate an encoder on several ranks.")
    with_example(
        parser,
        "deepspeed --num_gpus 8 --module ijepa_ds.evals linear --checkpoint runs/x "
        "--train data/train --test data/test --out runs/x/eval",
        "docs/evaluate.md",
    )
    add_local_rank(parser)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    from ijepa_ds.evals.run import run  # late: it imports PyTorch

    try:
        return run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)  # rank 0 prints the error, then the launcher ends this rank
        else:
            print(f"ijepa_ds.evals: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
