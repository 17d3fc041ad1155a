"""Pretraining: `deepspeed [...] --module ijepa_ds.train --config configs/X.yaml --deepspeed_config ds_configs/Y.json`.

`python -m ijepa_ds.train ...` trains in one process. `docs/running.md` describes the files of a run.
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
from pathlib import Path
from typing import TYPE_CHECKING

from ijepa_ds import terminal
from ijepa_ds.arguments import TRAINING, add_local_rank, add_run, with_example
from ijepa_ds.cluster import rank_log
from ijepa_ds.cluster.environment import settle
from ijepa_ds.cluster.leave import exit_within
from ijepa_ds.cluster.stop import Stopped, StopRequests
from ijepa_ds.errors import UserError, exit_code, is_agreed, text_of
from ijepa_ds.exits import FAILED, STOPPED, note
from ijepa_ds.training import job

if TYPE_CHECKING:
    from ijepa_ds.cluster.watch import Watch

logger = logging.getLogger("ijepa_ds")
_EXIT = 60.0  # seconds for the interpreter to end


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.train", description="Pretrain an I-JEPA model.")
    with_example(parser, TRAINING, "docs/running.md")
    add_run(parser)
    text = "start nothing: say what a start would refuse, all at once; writes nothing"
    parser.add_argument("--check", action="store_true", help=text)
    parser.add_argument("--ranks", type=int, metavar="N", help="with --check and no launcher: check for N ranks (1)")
    add_local_rank(parser)
    arguments = parser.parse_intermixed_args(argv)
    if arguments.ranks is not None and (not arguments.check or arguments.ranks < 1):
        parser.error("--ranks: a number from 1, with --check; a launcher gives the number of ranks of a run")
    return arguments


def _is_rank_zero() -> bool:
    return os.environ.get("RANK", "0") == "0"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer; returns the exit code (`docs/checkpoints.md`)."""
    try:
        code = _run(argv)
        note(code)
        return code
    except BaseException:
        rank_log.release()
        raise
    finally:
        _close_broken_streams()


def _run(argv: Sequence[str] | None) -> int:
    terminal.begin()
    arguments = parse_arguments(argv)
    if arguments.check:
        return _check(arguments)
    try:
        chosen = settle(os.environ)  # before torch is imported
    except UserError as error:
        return _refuse(error, "cannot run this", exit_code(error))
    rank_log.hold(int(os.environ.get("RANK", "0")))  # what DeepSpeed and PyTorch print while they load
    if chosen:
        logger.debug("environment: %s (chosen here, as unset)", " ".join(chosen))
    from ijepa_ds.checkpoint import run_dir
    from ijepa_ds.cluster.watch import Watch
    from ijepa_ds.distributed.environment import world_from_environment
    from ijepa_ds.distributed.world import barrier, shut_down_distributed

    watch = Watch()
    watch.start()
    try:
        rank, _, world_size = world_from_environment()
        watch.doing("reading the configuration")
        cfg, ds_config, plan = job.read(arguments, world_size)
        watch.doing("loading Python packages")
        from ijepa_ds.training import loop, start

        run = start.prepare(cfg, ds_config, plan, rank, watch)
    except Exception as error:
        return _end(error, watch, "cannot run this")
    code = 0
    with StopRequests() as stop:
        watch.on_launcher_lost = lambda: stop.request(signal.SIGHUP)
        try:
            loop.train(run, stop)
        except Stopped as reason:
            code = STOPPED
            if _is_rank_zero():
                run_dir.mark_stopped(Path(cfg.run.dir), str(reason))
                terminal.line(f"\nijepa_ds: {reason}; saved: the same command continues. Exit code {code}")
        except Exception as error:
            return _end(error, watch, "stopped")
        watch.close()
        barrier()  # afterwards ranks may end in any order
        shut_down_distributed()
    return code


def _check(arguments: argparse.Namespace) -> int:
    """What a start would refuse; of a launcher's ranks, rank 0 says it."""
    if not _is_rank_zero():
        return 0
    from ijepa_ds.distributed.environment import launcher_world
    from ijepa_ds.doctor.check import check_start

    try:
        world = launcher_world()
    except UserError as error:
        return _refuse(error, "cannot run this", exit_code(error))
    return check_start(arguments, world[2] if world else arguments.ranks or 1)


def _here() -> str:
    return f"rank {os.environ.get('RANK', '0')} on host {socket.gethostname()}"


def _end(error: Exception, watch: Watch, what: str) -> int:
    """Report the error that ends this rank; the exit code says what has to happen next (`errors.exit_code`)."""
    code = exit_code(error)
    if code == FAILED:
        return _fail(error, watch)
    watch.close()  # most often every rank has the same error
    return _refuse(error, what, code)


def _fail(error: Exception, watch: Watch) -> int:
    """Report an unexpected error, its reason last. If several ranks fail, only the first one speaks."""
    text = traceback.format_exc()
    rank_log.note(text)
    first = watch.claim_failure()
    # If another rank caused this (a broken connection), the watch reports that rank and ends this process meanwhile.
    time.sleep(4 if first else 15)
    log = rank_log.path()
    if log is None:
        rank_log.release()
        rank_log.show(f"\n{text}")
    where = f"its traceback is in {log}" if log else "its traceback is above"
    rank_log.say(f"\n{type(error).__name__}: {error}\n", f"\nijepa_ds failed: {_here()}; {where}; exit code {FAILED}:")
    return FAILED


def _refuse(error: Exception, what: str, code: int) -> int:
    """Report an error that is no bug, once: other ranks wait, and the launcher ends them after rank 0."""
    if os.environ.get("IJEPA_DS_TRACEBACK"):
        rank_log.show(traceback.format_exc())
    rank_log.note(traceback.format_exc())
    where = "" if _is_rank_zero() else f" on {_here()}"
    if where:
        time.sleep(20)  # on a busy host, the ranks of a launcher start seconds apart
        if is_agreed(error):
            return code  # rank 0 has the same error
    then = "storage or network failed: the same command continues" if code == STOPPED else "IJEPA_DS_TRACEBACK=1 shows where"
    rank_log.say(f"\n{text_of(error)}\n", f"\nijepa_ds {what}{where} ({then}; exit code {code}):")
    return code


def _close_broken_streams() -> None:
    """Discard output that cannot be written (closed terminal, full disk), so that it does not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    code = main()
    exit_within(_EXIT, code)  # threads that wait for a disk must not keep the process
    sys.exit(code)
