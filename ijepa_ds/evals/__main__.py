"""`deepspeed --num_gpus N --module ijepa_ds.evals TASK ...`: `ijepa-ds eval TASK ...` with features from N ranks."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from ijepa_ds import terminal
from ijepa_ds.arguments import add_local_rank, with_example
from ijepa_ds.cluster import rank_log
from ijepa_ds.options.evals import add_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run an evaluation; exit code 2 for errors in the input."""
    terminal.begin()
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
    rank = int(os.environ.get("RANK", "0"))
    rank_log.hold(rank)  # what DeepSpeed and PyTorch print while they load; other ranks are silent
    from ijepa_ds.evals.run import run  # late: it imports PyTorch

    try:
        return run(arguments)
    except (ValueError, OSError, RuntimeError) as error:
        if rank:
            time.sleep(5)  # rank 0 prints the error, then the launcher ends this rank
        else:
            terminal.error("ijepa_ds.evals", str(error))
        return 2
    except BaseException:
        rank_log.release()
        raise


if __name__ == "__main__":
    sys.exit(main())
