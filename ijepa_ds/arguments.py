"""Command-line options that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ijepa_ds.errors import UserError
from ijepa_ds.examples import shipped

if TYPE_CHECKING:
    import torch

TRAINING = """\
deepspeed --num_gpus 8 --module ijepa_ds.train --config configs/in1k_vith14.yaml \\
    --deepspeed_config ds_configs/zero3.json data.source=/data/imagenet/train run.dir=runs/vith14"""
WEIGHTS = "run, checkpoint folder, or weights of any kind (docs/weights.md)"
DECODER = "folder of `ijepa-ds decoder train --out`"
_Options = argparse.ArgumentParser | argparse._ArgumentGroup


def with_example(parser: argparse.ArgumentParser, example: str, page: str) -> None:
    """End the help text with an example and the documentation page; line breaks of description and example are kept."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example: {example}\npage: {page}"


class Once(argparse.Action):
    """An option that is refused when it is given twice; argparse would silently take the last."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Store the value."""
        before = getattr(namespace, self.dest, None)
        if before is not None:
            parser.error(f"{option_string} is given twice, {before} and {values}; give it once")
        setattr(namespace, self.dest, values)


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse arguments whose overrides may stand anywhere between the options."""
    try:
        return parser.parse_intermixed_args(arguments)
    except TypeError:  # not for parsers that pass the rest of the line on
        return parser.parse_args(arguments)


def add_config(parser: argparse.ArgumentParser) -> None:
    """`--config`, and overrides of its keys."""
    text = "YAML of the run (ours, or a published experiment)"
    parser.add_argument("--config", required=True, type=shipped, action=Once, help=text)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="override keys of the YAML")


def add_deepspeed_config(parser: argparse.ArgumentParser) -> None:
    """`--deepspeed_config`."""
    text = "DeepSpeed JSON: ZeRO stage, offload, buckets"
    parser.add_argument("--deepspeed_config", required=True, type=shipped, action=Once, help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """What describes a run: `--config`, `--deepspeed_config`, overrides."""
    add_config(parser)
    add_deepspeed_config(parser)


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """`--local_rank`, which the DeepSpeed launcher passes; it is not used."""
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)


def add_out(parser: argparse.ArgumentParser, help_: str, **more: Any) -> None:
    """`--out`, required."""
    parser.add_argument("--out", required=True, type=Path, help=help_, **more)


def add_json(parser: argparse.ArgumentParser, help_: str) -> None:
    """`--json FILE`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help=help_)


def add_source(parser: argparse.ArgumentParser) -> None:
    """`SRC`, an image source."""
    parser.add_argument("source", metavar="SRC", help="folder, list, tar shards, parquet, index or mix (docs/data.md)")


def add_columns(parser: argparse.ArgumentParser) -> None:
    """`--image-column` and `--label-column` of parquet files."""
    parser.add_argument("--image-column", metavar="NAME", default="", help="as data.image_column (parquet)")
    parser.add_argument("--label-column", metavar="NAME", default="", help="as data.label_column (parquet)")


def parse_level(text: str) -> int:
    """Return the value of `--class-level`: a whole number other than 0."""
    if not text.lstrip("-").isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1, 2, ... (first folders) or -1, -2, ... (last folders)")
    return int(text)


def add_step(parser: argparse.ArgumentParser) -> None:
    """`--step` of a checkpoint."""
    parser.add_argument("--step", type=int, help="of a run: the checkpoint of this step; default: the newest valid one")


def add_heads(parser: argparse.ArgumentParser) -> None:
    """`--heads`, for weights in whose file the number is not stored."""
    parser.add_argument("--heads", type=int, help="attention heads, for weight files that do not store the number")


def add_seed(parser: argparse.ArgumentParser, help_: str) -> None:
    """`--seed`."""
    parser.add_argument("--seed", type=int, default=0, help=f"{help_} (0)")


def add_decoder(parser: argparse.ArgumentParser) -> None:
    """`--decoder`, the weights it was trained for, and how it samples."""
    parser.add_argument("--decoder", required=True, type=Path, help=DECODER)
    parser.add_argument("--checkpoint", type=Path, help="default: the weights the decoder was trained for")
    parser.add_argument("--sampler-steps", type=int, default=50, help="DDIM steps (50)")


def add_batch_size(parser: _Options, default: int, help_: str = "images in a forward pass") -> None:
    """`--batch-size`."""
    parser.add_argument("--batch-size", type=int, default=default, help=f"{help_} ({default})")


def add_threads(parser: _Options, default: int) -> None:
    """`--threads` that decode."""
    parser.add_argument("--threads", type=int, default=default, help=f"decoding threads ({default})")


def add_device(parser: argparse.ArgumentParser) -> None:
    """`--device`; `device_of` reads it."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto: cuda if available)")


def device_of(name: str) -> torch.device:
    """The device that `--device` names."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)


def check_at_least(args: argparse.Namespace, **least: float) -> None:
    """Refuse options below their smallest value.

    Args:
        args: the parsed command line.
        **least: option -> smallest value allowed; `batch_size=1` checks `--batch-size`. None is allowed.

    Raises:
        ValueError: names every option that is too small.
    """
    wrong = below(args, **least)
    if wrong:
        raise UserError("\n".join(wrong))


def below(args: argparse.Namespace, **least: float) -> list[str]:
    """A line for each option that `check_at_least` refuses."""
    given = [(name.replace("_", "-"), getattr(args, name), smallest) for name, smallest in least.items()]
    return [
        f"--{option} {value}: expected at least {smallest}"
        for option, value, smallest in given
        if value is not None and value < smallest
    ]
