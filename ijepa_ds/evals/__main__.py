"""`deepspeed --num_gpus N --module ijepa_ds.evals TASK ...`: `ijepa-ds eval TASK ...` with features from N ranks."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence

from ijepa_ds.evals.run import add_arguments, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run an evaluation; 2 when the user has to mend something."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.evals", description=__doc__.split("\n")[0])
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher passes it
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)  # rank 0 says it; then the launcher ends this one
        else:
            print(f"ijepa_ds.evals: {error}", file=sys.stderr, flush=True)
        return 2


if __name__ == "__main__":
    sys.exit(main())
