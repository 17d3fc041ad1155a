"""Pretraining: `deepspeed [...] --module ijepa_ds.train --config configs/X.yaml --deepspeed_config ds_configs/Y.json`.

`python -m ijepa_ds.train ...` runs the same on one process. What a run writes is in `docs/running.md`.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from ijepa_ds.arguments import TRAINING, add_local_rank, add_run, with_example
from ijepa_ds.cluster import rank_log
from ijepa_ds.cluster.environment import settle
from ijepa_ds.cluster.stop import Stopped, StopRequests
from ijepa_ds.errors import CheckpointError
from ijepa_ds.exits import FAILED, STOPPED, USER_ERROR
from ijepa_ds.training import job

if TYPE_CHECKING:
    from ijepa_ds.cluster.watch import Watch

logger = logging.getLogger("ijepa_ds")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.train", description="Pretrain an I-JEPA model.")
    with_example(parser, TRAINING, "docs/running.md")
    add_run(parser)
    add_local_rank(parser)
    return parser.parse_intermixed_args(argv)


def _is_rank_zero() -> bool:
    return os.environ.get("RANK", "0") == "0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer; the process's exit code (`docs/checkpoints.md` lists them)."""
    try:
        return _run(argv)
    finally:
        _let_go_of_dead_streams()


def _run(argv: Sequence[str] | None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = parse_arguments(argv)
    chosen = settle(os.environ)  # before torch is imported
    if chosen and _is_rank_zero():
        logger.info("environment: %s (chosen here, as unset)", " ".join(chosen))
    from ijepa_ds.cluster.watch import Watch
    from ijepa_ds.distributed.environment import world_from_environment
    from ijepa_ds.distributed.world import barrier, shut_down_distributed

    watch = Watch()
    watch.start()
    try:
        rank, _, world_size = world_from_environment()
        cfg, ds_config, plan = job.read(arguments, world_size)
        from ijepa_ds.training import loop, start

        run = start.prepare(cfg, ds_config, plan, rank, watch)
    except (ValueError, OSError, CheckpointError) as error:
        watch.close()  # all ranks are refused
        return _refuse(error, "cannot run this")
    except Exception:
        return _fail(watch)
    from ijepa_ds.errors import TrainingError

    code = 0
    with StopRequests() as stop:
        watch.on_launcher_lost = lambda: stop.request(signal.SIGHUP)
        try:
            loop.train(run, stop)
        except (ValueError, OSError, CheckpointError, TrainingError) as error:
            watch.close()
            return _refuse(error, "stopped")
        except Stopped as reason:
            code = STOPPED
            if _is_rank_zero():
                _say(f"ijepa_ds: {reason}; saved: the same command continues. Exit code {code}", sys.stdout)
        except Exception:
            return _fail(watch)
        watch.close()
        barrier()  # past it, ranks may end in any order
        shut_down_distributed()
    return code


def _here() -> str:
    return f"rank {os.environ.get('RANK', '0')} on host {socket.gethostname()}"


def _fail(watch: Watch) -> int:
    """An error nobody foresaw: of all ranks that meet one now, the first shows its traceback, after the others are still."""
    text = traceback.format_exc()
    rank_log.note(text)
    first = watch.claim_failure()
    # When the other side of a broken connection is to blame, the watch names it and ends this process meanwhile.
    time.sleep(4 if first else 15)
    rank_log.show(f"\n{text}")
    rank_log.say(f"\nijepa_ds failed: {_here()}, see above{rank_log.pointer()}\n")
    return FAILED


def _refuse(error: Exception, what: str) -> int:
    """One message by rank 0. The others give it time to speak: then the launcher ends them, or they were alone."""
    if os.environ.get("IJEPA_DS_TRACEBACK"):
        rank_log.show(traceback.format_exc())
    rank_log.note(traceback.format_exc())
    where = "" if _is_rank_zero() else f" ({_here()})"
    if where:
        time.sleep(5)
    rank_log.say(f"\nijepa_ds {what}{where}:\n{error}\n(IJEPA_DS_TRACEBACK=1 shows where)\n\n")
    return USER_ERROR


def _say(text: str, stream: TextIO) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(f"\n{text}", file=stream, flush=True)


def _let_go_of_dead_streams() -> None:
    """What cannot be printed, as the terminal is gone or the disk is full, must not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
