"""Train a decoder on many GPUs: `deepspeed [...] --module ijepa_ds.train_decoder --deepspeed_config ds_configs/zero3.json ...`.

Other options as in `ijepa-ds decoder train`, which runs on one process without DeepSpeed. The ranks share
each batch; images, masks and noise of a step do not depend on the number of ranks. A training resumes
with any number of ranks and any ZeRO stage.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from ijepa_ds import terminal
from ijepa_ds.arguments import add_deepspeed_config, add_local_rank, check_at_least, with_example
from ijepa_ds.cluster import rank_log
from ijepa_ds.cluster.environment import settle
from ijepa_ds.options.decoder import train as add_training

logger = logging.getLogger("ijepa_ds")


def main(argv: Sequence[str] | None = None) -> int:
    """Train or resume; exit code 2 for errors in the input."""
    terminal.begin()
    settle(os.environ)  # before torch is imported
    arguments = _parse(argv)
    rank_log.hold(int(os.environ.get("RANK", "0")))  # what DeepSpeed and PyTorch print while they load
    try:
        _run(arguments)
    except (ValueError, OSError) as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(5)  # rank 0 prints its error first, then the launcher ends this rank
        rank_log.say(f" {error}\n", "ijepa_ds.train_decoder:")
        return 2
    except BaseException:
        rank_log.release()
        raise
    from ijepa_ds.distributed.world import barrier, shut_down_distributed

    barrier()
    shut_down_distributed()
    return 0


def train(argv: Sequence[str] | None) -> None:
    """Train on this rank; the process group stays initialised.

    Raises:
        ValueError: errors in the input.
    """
    _run(_parse(argv))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ijepa_ds.train_decoder", description="Train a decoder on many GPUs.")
    example = """deepspeed --num_gpus 8 --module ijepa_ds.train_decoder --deepspeed_config ds_configs/zero3.json \\
    --checkpoint runs/vith14 --data data/train --out runs/vith14/decoder --preset gpu"""
    with_example(parser, example, "docs/decoder.md")
    add_training(parser)
    add_deepspeed_config(parser)
    text = "largest number of images in a forward pass of a rank; smaller: less memory, more passes (32)"
    parser.add_argument("--max-micro-batch", type=int, default=32, help=text)
    add_local_rank(parser)
    return parser.parse_args(argv)


def _run(arguments: argparse.Namespace) -> None:
    from ijepa_ds.cluster.meeting import meet
    from ijepa_ds.config import deepspeed_json
    from ijepa_ds.config.batch import plan_batch
    from ijepa_ds.decoder.engine import ShardedLearner
    from ijepa_ds.decoder.learner import CLIP
    from ijepa_ds.decoder.options import shape_of
    from ijepa_ds.decoder.train import Trainer, open_inputs
    from ijepa_ds.distributed.environment import START_TIMEOUT, world_from_environment
    from ijepa_ds.distributed.world import initialise_distributed

    shape = shape_of(arguments)
    rank, _, world_size = world_from_environment()
    check_at_least(arguments, max_micro_batch=1)
    try:
        plan = plan_batch(shape.batch_size, arguments.max_micro_batch, world_size)
    except ValueError as error:
        raise ValueError(str(error).replace("optimization.batch_size", "--batch-size")) from error
    ds_config: dict[str, Any] = deepspeed_json.read_deepspeed(arguments.deepspeed_config, plan, CLIP, arguments.precision)
    meeting = meet(rank, world_size, START_TIMEOUT)  # the process group uses its store
    device = initialise_distributed()
    del meeting
    shape, conditioner, images = open_inputs(arguments, shape, device)
    learner = ShardedLearner(shape, conditioner.width, device, ds_config, arguments.seed)
    if rank == 0:
        logger.info("%s; %d x %d images a step of each rank", learner.describe(), plan.accumulation, plan.micro_batch)
    Trainer(arguments, shape, conditioner, images, learner).train()


if __name__ == "__main__":
    sys.exit(main())
