"""The options of `ijepa-ds bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from ijepa_ds.arguments import (
    WEIGHTS,
    add_batch_size,
    add_config,
    add_device,
    add_json,
    add_run,
    add_source,
    add_threads,
)

_REPEATS = {"bench step": 10, "bench train": 20, "bench ema": 20, "bench comm": 20}


def _job(parser: argparse.ArgumentParser) -> None:
    """The run, the number of ranks, and a file for the figures; `run_ranks` uses them."""
    add_run(parser)
    parser.add_argument("--ranks", type=int, required=True, help="processes on this machine (GPUs, if it has any)")
    add_json(parser, "also write the figures to this file")


def recorded(parser: argparse.ArgumentParser) -> None:
    """The options of the verb that the parser has as its default `verb`."""
    verb = parser.get_default("verb")
    _job(parser)
    repeats = _REPEATS[verb]
    parser.add_argument("--steps", type=int, default=repeats, help=f"repeats counted, after a warm-up ({repeats})")
    if verb == "bench train":
        parser.add_argument("--trace", type=Path, help="write a torch.profiler trace of two more steps of rank 0 here")


def fit(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    _job(parser)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps, at least 4; the last one counts collectives (5)")


def state(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    _job(parser)
    parser.add_argument("--stages", type=_stages, default=[0, 1, 2, 3], metavar="N[,N]", help="ZeRO stages (0,1,2,3)")


def _stages(text: str) -> list[int]:
    """Parse `0,1,2`. One argument: `nargs` would also consume the overrides that follow."""
    if not all(part in ("0", "1", "2", "3") for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r}: expected stages 0 to 3 separated by commas, such as 1,2")
    return [int(part) for part in text.split(",")]


def masks(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_config(parser)
    parser.add_argument("--repeats", type=int, default=30, help="micro-batches that are timed (30)")
    add_device(parser)
    add_json(parser, "also write the figures to this file")


def data(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds bench data`."""
    add_source(parser)
    parser.add_argument("--crop-size", type=int, default=224, help="pixels (224)")
    add_threads(parser, 1)
    add_batch_size(parser, 32, "images in a batch")
    parser.add_argument("--batches", type=int, default=15, help="batches timed in a repeat (15)")
    parser.add_argument("--repeats", type=int, default=5, help="interleaved repeats; the table shows medians (5)")
    add_device(parser)
    parser.add_argument(
        "--decoder", choices=("auto", "cpu", "mixed", "mixed_roi"), default="auto", help="as data.decoder (auto)"
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the network's input (float32)"
    )


def eval(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    parser.add_argument("--checkpoint", required=True, help=WEIGHTS)
    parser.add_argument("--images", required=True, help="folder, list, tars or index")
    parser.add_argument("--num", type=int, default=2000, help="images in a repeat (2000)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats of each measurement, interleaved (5)")
    add_batch_size(parser, 256)
    add_threads(parser, 2)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products (float32)")
    add_device(parser)
    parser.add_argument("--features", type=int, default=50_000, help="cached features of the sweep; 0: no sweep (50000)")
    parser.add_argument("--classes", type=int, default=10, help="classes of the sweep (10)")


def index(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ijepa-ds bench index`."""
    parser.add_argument("--entries", type=int, default=14_000_000, help="synthetic images (14 million)")
    parser.add_argument("--readers", type=int, default=8, help="reader processes (8)")
    add_batch_size(parser, 128, "images in a batch of a reader")
    parser.add_argument("--batches", type=int, default=500, help="batches that each reader looks up (500)")
    parser.add_argument("--folder", type=Path, help="for the index, about 100 bytes per entry (default: temporary)")


def checkpoint(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    _job(parser)
    parser.add_argument("--saves", type=int, default=3, help="saves of each kind (3)")


def host(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_run(parser)
    parser.add_argument("--world", nargs="+", default=["1"], metavar="N", help="ranks; only one of them exists (1)")
    parser.add_argument("--steps", type=int, default=9, help="steps counted, after a warm-up (9)")
    parser.add_argument(
        "--deepspeed-collectives",
        action="store_true",
        help="also with DeepSpeed's own gathers and reductions of stage 3: minutes at thousands of ranks",
    )
    add_json(parser, "also write the figures to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the time over the ranks (PNG)")
