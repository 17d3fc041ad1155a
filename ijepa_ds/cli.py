"""`ijepa-ds VERB ...`: lists the verbs, and runs one. Training itself is `deepspeed ... --module ijepa_ds.train`."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import select
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ijepa_ds import __version__, terminal
from ijepa_ds.arguments import TRAINING, parse, with_example
from ijepa_ds.exits import USER_ERROR

_SIGPIPE = 141  # the exit code of a program whose output is closed, as a shell sees it
_RUN = "--config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json"


class Verb(NamedTuple):
    """A verb of the command line.

    Attributes:
        module: has `run(args) -> exit code`. It is imported only when the verb is used.
        help: one line.
        example: a command.
        page: the documentation to read.
        options: `module:function` that declares the options; default: `add_arguments` of `module`. It needs no PyTorch.
    """

    module: str
    help: str
    example: str
    page: str
    options: str = ""


# What a person wants -> the verbs for it.
GROUPS = {
    "prepare data": {
        "data index": Verb(
            "ijepa_ds.data.index_command",
            "scan an image source once, for all later runs",
            "ijepa-ds data index data/train --out data/train.index",
            "docs/data.md",
        ),
        "data check": Verb(
            "ijepa_ds.data.check_command",
            "decode every image and list those that cannot be read",
            "ijepa-ds data check data/train --fix-index data/train.index",
            "docs/reading.md",
        ),
        "data stats": Verb(
            "ijepa_ds.visualize.stats",
            "sizes, channels, mean and deviation, duplicates and classes of an image source",
            "ijepa-ds data stats data/train --out data/train-stats",
            "docs/data.md",
            "ijepa_ds.data.index_command:add_stats_arguments",
        ),
        "data list": Verb(
            "ijepa_ds.data.list_command",
            "write a list of images and labels from a data set's own label files",
            "ijepa-ds data list data/tiny-imagenet-200 --layout tiny-imagenet --out data/val.csv",
            "docs/data.md",
        ),
        "data shard": Verb(
            "ijepa_ds.data.shard_command",
            "write an image source as tar or parquet shards with an index",
            "ijepa-ds data shard data/train --out data/train-shards --size 512M",
            "docs/data.md",
        ),
        "data scenes": Verb(
            "ijepa_ds.scenes.command",
            "render CLEVR-like demo images",
            "ijepa-ds data scenes --out data/scenes --num 6000 --size 64 --seed 0",
            "docs/scenes.md",
        ),
        "data objects": Verb(
            "ijepa_ds.scenes.objects_command",
            "render demo images of one large object each",
            "ijepa-ds data objects --out data/objects --num 8000 --size 64 --seed 0",
            "docs/scenes.md",
        ),
    },
    "plan and check": {
        "init": Verb(
            "ijepa_ds.begin.command",
            "write a first configuration for your own images",
            "ijepa-ds init runs/mine --data data/train --gpus 8",
            "docs/begin.md",
            "ijepa_ds.options.begin:add_arguments",
        ),
        "plan": Verb(
            "ijepa_ds.plan.command",
            "estimate memory, communication and time of a run; needs no GPU",
            f"ijepa-ds plan {_RUN} --nodes 2 --gpus-per-node 8 --gpu a100-80g --images 1281167 --search",
            "docs/plan.md",
        ),
        "doctor": Verb(
            "ijepa_ds.doctor.command",
            "check the hosts of a run before it starts",
            f"ijepa-ds doctor --hostfile hostfile {_RUN}",
            "docs/launch.md",
        ),
        "config schema": Verb(
            "ijepa_ds.config.command",
            "write the JSON schema of a run's YAML, for editors",
            "ijepa-ds config schema --out ijepa_ds.schema.json",
            "docs/configuration.md",
        ),
    },
    "run": {
        "copy-examples": Verb(
            "ijepa_ds.examples",
            "copy the shipped configurations, DeepSpeed files and launch scripts",
            "ijepa-ds copy-examples .",
            "docs/install.md",
        ),
        "supervise": Verb(
            "ijepa_ds.cluster.supervise",
            "run a training command and restart it after a failure",
            f"ijepa-ds supervise -- deepspeed --num_gpus 8 --module ijepa_ds.train {_RUN}",
            "docs/checkpoints.md",
        ),
        "checkpoint": Verb(
            "ijepa_ds.checkpoint.command",
            "list, verify or prune the checkpoints of a run",
            "ijepa-ds checkpoint verify runs/x",
            "docs/checkpoints.md",
            "ijepa_ds.options.checkpoint:add_arguments",
        ),
        "scale": Verb(
            "ijepa_ds.scale.command",
            "run a series of model sizes and budgets, fit power laws, predict the next run",
            "ijepa-ds scale configs/ladder_cifar10.yaml",
            "docs/scaling.md",
            "ijepa_ds.options.scale:add_arguments",
        ),
        "decoder train": Verb(
            "ijepa_ds.decoder.train",
            "train a diffusion decoder that draws images from representations",
            "ijepa-ds decoder train --checkpoint runs/x --data data/train --out runs/x/decoder",
            "docs/decoder.md",
            "ijepa_ds.options.decoder:train",
        ),
    },
    "evaluate": {
        "eval": Verb(
            "ijepa_ds.evals.run",
            "score a frozen encoder on labelled images",
            "ijepa-ds eval all --checkpoint runs/x --train data/train --test data/test --baseline untrained --out runs/x/eval",
            "docs/evaluate.md",
            "ijepa_ds.options.evals:add_arguments",
        ),
        "decoder evaluate": Verb(
            "ijepa_ds.decoder.measure",
            "compare decoder samples from true and from shuffled representations",
            "ijepa-ds decoder evaluate --decoder runs/x/decoder --images data/test --out runs/x/decoder/eval",
            "docs/decoder.md",
            "ijepa_ds.options.decoder:evaluate",
        ),
    },
    "look": {
        "visualize": Verb(
            "ijepa_ds.visualize.command",
            "draw masks, PCA, similarity, attention, predictions or decoder samples",
            "ijepa-ds visualize pca --checkpoint runs/x --images data/test --out pictures",
            "docs/visualize.md",
            "ijepa_ds.options.visualize:add_arguments",
        ),
        "report": Verb(
            "ijepa_ds.visualize.report",
            "compare runs in one HTML file",
            "ijepa-ds report runs/a runs/b --out report",
            "docs/visualize.md",
            "ijepa_ds.options.pages:report",
        ),
        "summary": Verb(
            "ijepa_ds.visualize.summary",
            "draw loss, masks and scores of a run in one picture",
            "ijepa-ds summary --run runs/x --eval runs/x/eval --out runs/x/summary.png",
            "docs/evaluate.md",
            "ijepa_ds.options.pages:summary",
        ),
    },
    "weights": {
        "export": Verb(
            "ijepa_ds.weights.export",
            "write an encoder for timm, transformers or the published code, or as safetensors",
            "ijepa-ds export --run runs/x --which target --format hf --out exports/x",
            "docs/weights.md",
            "ijepa_ds.options.weights:export",
        ),
        "import": Verb(
            "ijepa_ds.weights.importing",
            "check published, timm or Hugging Face weights; with --out, convert them",
            "ijepa-ds import IN1K-vit.h.14-300e.pth.tar --out weights/vith14",
            "docs/weights.md",
            "ijepa_ds.options.weights:import_",
        ),
    },
    "measure": {
        "bench step": Verb(
            "ijepa_ds.bench.recorded",
            "time the parts of a step on random pixels; MFU, share of the measured product",
            f"ijepa-ds bench step {_RUN} --ranks 2",
            "docs/performance.md",
            "ijepa_ds.options.bench:recorded",
        ),
        "bench train": Verb(
            "ijepa_ds.bench.recorded",
            "time the first steps of a real run; MFU, and optionally a trace",
            f"ijepa-ds bench train {_RUN} --ranks 2 --steps 20 data.source=data/train",
            "docs/performance.md",
            "ijepa_ds.options.bench:recorded",
        ),
        "bench fit": Verb(
            "ijepa_ds.bench.fit",
            "check that a model fits on this machine; memory and time of a step",
            f"ijepa-ds bench fit {_RUN} --ranks 2",
            "docs/performance.md",
            "ijepa_ds.options.bench:fit",
        ),
        "bench state": Verb(
            "ijepa_ds.bench.state",
            "measure the model state of a rank at every ZeRO stage",
            f"ijepa-ds bench state {_RUN} --ranks 2",
            "docs/performance.md",
            "ijepa_ds.options.bench:state",
        ),
        "bench checkpoint": Verb(
            "ijepa_ds.bench.checkpoint",
            "time asynchronous and synchronous saves",
            f"ijepa-ds bench checkpoint {_RUN} --ranks 2",
            "docs/checkpoints.md",
            "ijepa_ds.options.bench:checkpoint",
        ),
        "bench ema": Verb(
            "ijepa_ds.bench.recorded",
            "time an EMA update, and a loop over the parameters",
            f"ijepa-ds bench ema {_RUN} --ranks 2",
            "docs/performance.md",
            "ijepa_ds.options.bench:recorded",
        ),
        "bench comm": Verb(
            "ijepa_ds.bench.recorded",
            "time collectives by size, and count those of a step",
            f"ijepa-ds bench comm {_RUN} --ranks 2",
            "docs/performance.md",
            "ijepa_ds.options.bench:recorded",
        ),
        "bench host": Verb(
            "ijepa_ds.bench.host",
            "time what a step costs the host, in process groups of any size",
            f"ijepa-ds bench host {_RUN} --world 1 64 512",
            "docs/host-time.md",
            "ijepa_ds.options.bench:host",
        ),
        "bench masks": Verb(
            "ijepa_ds.bench.masks",
            "time the sampling of masks for a micro-batch",
            "ijepa-ds bench masks --config configs/in1k_vith14.yaml data.source=unused",
            "docs/performance.md",
            "ijepa_ds.options.bench:masks",
        ),
        "bench data": Verb(
            "ijepa_ds.bench.data",
            "throughput of this loader, torchvision's, and decoding alone",
            "ijepa-ds bench data data/train --repeats 5",
            "docs/reading.md",
            "ijepa_ds.options.bench:data",
        ),
        "bench index": Verb(
            "ijepa_ds.bench.index",
            "open time, lookup time and memory of a large index",
            "ijepa-ds bench index --entries 14000000 --readers 8",
            "docs/reading.md",
            "ijepa_ds.options.bench:index",
        ),
        "bench eval": Verb(
            "ijepa_ds.bench.eval",
            "throughput of feature extraction, and time of a linear sweep",
            "ijepa-ds bench eval --checkpoint runs/x --images data/train",
            "docs/evaluate.md",
            "ijepa_ds.options.bench:eval",
        ),
    },
}
VERBS = {words: verb for group in GROUPS.values() for words, verb in group.items()}


def overview(first: str = "") -> str:
    """The help text: how training is started, and all verbs by purpose; with `first`, the verbs that start with that word."""
    if first:
        head = [f"usage: ijepa-ds {first} VERB ..."]
    else:
        head = ["usage: ijepa-ds VERB ...", "", "Start training (docs/running.md):", f"  {TRAINING}", "", "Verbs:"]
    lines = []
    for purpose, group in GROUPS.items():
        rows = [f"  {words:<18}{verb.help}" for words, verb in group.items() if not first or words.startswith(f"{first} ")]
        lines += ["", purpose, *rows] if rows else []
    shown = f"ijepa-ds {first} VERB" if first else "ijepa-ds VERB"
    return "\n".join([*head, *lines, "", f"`{shown} --help` shows the options, an example and the page to read."])


def build_parser(words: str) -> argparse.ArgumentParser:
    """The command line of a verb."""
    verb = VERBS[words]
    parser = argparse.ArgumentParser(prog=f"ijepa-ds {words}", description=verb.help)
    with_example(parser, verb.example, verb.page)
    parser.set_defaults(verb=words)
    module, _, function = (verb.options or f"{verb.module}:add_arguments").partition(":")
    getattr(importlib.import_module(module), function)(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; its exit code: 0 on success, 2 when the command line or a file has to be corrected."""
    terminal.begin()
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError as error:
        if _reader_left():
            return _SIGPIPE
        terminal.error("ijepa-ds", str(error))
        return USER_ERROR
    return code


def _run(arguments: list[str]) -> int:
    words = next((words for words in VERBS if arguments[: len(words.split())] == words.split()), None)
    if words is None:
        return _no_verb(arguments)
    parser = build_parser(words)
    args = parse(parser, arguments[len(words.split()) :])
    try:
        code: int = importlib.import_module(VERBS[words].module).run(args)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, RuntimeError) as error:
        terminal.error(f"ijepa-ds {words}", str(error))
        return USER_ERROR
    return code


def _reader_left() -> bool:
    """Whether nobody reads the output any more (`ijepa-ds ... | head`); what is still buffered then goes nowhere."""
    output, poll = sys.stdout.fileno(), select.poll()
    poll.register(output, 0)  # errors only: a pipe without a reader has one
    left = bool(poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return left


def _no_verb(arguments: Sequence[str]) -> int:
    """Print help, the version, or that there is no such verb; the exit code."""
    first = next((words.split()[0] for words in VERBS if " " in words and arguments[:1] == words.split()[:1]), "")
    rest = arguments[1:] if first else arguments
    if not rest or rest[0] in ("-h", "--help"):
        print(overview(first), file=sys.stdout if rest else sys.stderr)
        return 0 if rest else USER_ERROR
    if not first and rest[0] == "--version":
        print(f"ijepa_ds {__version__}")
        return 0
    terminal.error("ijepa-ds", _unknown(first, rest[0]))
    return USER_ERROR


def _unknown(first: str, word: str) -> str:
    """One line about a word that is no verb, with the nearest verb."""
    if not first and word == "train":
        return f"'train' is not a verb; start training with deepspeed --num_gpus 8 --module ijepa_ds.train {_RUN}"
    asked = f"{first} {word}".lstrip()
    names = {words.split()[-1]: words for words in reversed(VERBS) if words.startswith(first)}
    names |= {words: words for words in VERBS} | {words.split()[0]: words.split()[0] for words in VERBS}
    near = difflib.get_close_matches(asked, names, n=1) or difflib.get_close_matches(word, names, n=1)
    hint = f"did you mean '{names[near[0]]}'? " if near else ""
    return f"no verb '{asked}'; {hint}`ijepa-ds --help` lists all verbs"


if __name__ == "__main__":
    sys.exit(main())
