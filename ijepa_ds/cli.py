"""`ijepa-ds VERB ...`: argument parsing only. Training itself is `deepspeed ... --module ijepa_ds.train`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from ijepa_ds import __version__

# verb -> (module with add_arguments(parser) and run(args) -> exit code, one line, example)
VERBS = {
    "bench data": (
        "ijepa_ds.bench.data",
        "images a second and processor time: our loader, torchvision's, decoding alone",
        "ijepa-ds bench data data/train --repeats 5",
    ),
    "bench index": (
        "ijepa_ds.bench.index",
        "what a large index costs: opening, lookups, memory",
        "ijepa-ds bench index --entries 14000000 --readers 8",
    ),
    "data check": (
        "ijepa_ds.data.check_command",
        "decode every image of a source and name those that cannot be read",
        "ijepa-ds data check data/train --fix-index data/train.index",
    ),
    "data index": (
        "ijepa_ds.data.index_command",
        "scan a source of images once, for every later run",
        "ijepa-ds data index data/train --out data/train.index",
    ),
    "data shard": (
        "ijepa_ds.data.shard_command",
        "write a source of images as tar shards with their index",
        "ijepa-ds data shard data/train --out data/train-shards --size 512M",
    ),
    "bench step": (
        "ijepa_ds.bench.step",
        "seconds of a step's parts on random pixels, and its MFU",
        "ijepa-ds bench step --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --ranks 2",
    ),
    "bench masks": (
        "ijepa_ds.bench.masks",
        "seconds to draw the masks of a micro-batch",
        "ijepa-ds bench masks --config configs/in1k_vith14.yaml data.source=unused",
    ),
    "bench ema": (
        "ijepa_ds.bench.ema",
        "seconds of an update of the average, beside a loop over parameters",
        "ijepa-ds bench ema --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --ranks 2",
    ),
    "bench comm": (
        "ijepa_ds.bench.comm",
        "seconds of collectives by size, and what a step sends",
        "ijepa-ds bench comm --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --ranks 2",
    ),
    "bench train": (
        "ijepa_ds.bench.train",
        "a real run's first steps: where their time goes, MFU, optionally a trace",
        "ijepa-ds bench train --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --ranks 2 "
        "--steps 20 data.source=data/train",
    ),
    "bench fit": (
        "ijepa_ds.bench.fit",
        "does a model fit on this machine, and what does a step cost",
        "ijepa-ds bench fit --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --ranks 2",
    ),
    "bench state": (
        "ijepa_ds.bench.state",
        "bytes of model state on a rank at every ZeRO stage",
        "ijepa-ds bench state --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --ranks 2",
    ),
    "bench checkpoint": (
        "ijepa_ds.bench.checkpoint",
        "what saving costs the steps, behind them and waited for",
        "ijepa-ds bench checkpoint --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --ranks 2",
    ),
    "bench eval": (
        "ijepa_ds.bench.eval",
        "what reading images costs an evaluation, and what a linear sweep takes",
        "ijepa-ds bench eval --checkpoint runs/x --images data/train",
    ),
    "data scenes": (
        "ijepa_ds.scenes.command",
        "render CLEVR-like demo scenes",
        "ijepa-ds data scenes --out data/scenes --num 6000 --size 64 --seed 0",
    ),
    "eval": (
        "ijepa_ds.evals.run",
        "score a run's frozen encoder",
        "ijepa-ds eval all --checkpoint runs/x --train data/train --test data/test --baseline untrained --out runs/x/eval",
    ),
    "export": (
        "ijepa_ds.weights.export",
        "write an encoder for timm, transformers, the published code, or as safetensors",
        "ijepa-ds export --run runs/x --which target --format hf --out exports/x",
    ),
    "import": (
        "ijepa_ds.weights.importing",
        "check published, timm or Hugging Face weights; with --out, convert them",
        "ijepa-ds import IN1K-vit.h.14-300e.pth.tar --out weights/vith14",
    ),
    "checkpoint": (
        "ijepa_ds.checkpoint.command",
        "list, verify or prune a run's checkpoints",
        "ijepa-ds checkpoint verify runs/x",
    ),
    "decoder train": (
        "ijepa_ds.decoder.train",
        "train a diffusion model that draws what a representation tells",
        "ijepa-ds decoder train --checkpoint runs/x --data data/train --out runs/x/decoder",
    ),
    "decoder evaluate": (
        "ijepa_ds.decoder.measure",
        "compare what it draws from true and from shuffled representations",
        "ijepa-ds decoder evaluate --decoder runs/x/decoder --images data/test --out runs/x/decoder/eval",
    ),
    "visualize": (
        "ijepa_ds.visualize.command",
        "look at a model: masks, pca, similarity, attention, predict, decode",
        "ijepa-ds visualize pca --checkpoint runs/x --images data/test --out pictures",
    ),
    "report": (
        "ijepa_ds.visualize.report",
        "runs beside each other in one HTML file",
        "ijepa-ds report runs/a runs/b --out report",
    ),
    "plan": (
        "ijepa_ds.plan.command",
        "what a run needs: memory, communication, time; needs no GPU",
        "ijepa-ds plan --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json --nodes 2 "
        "--gpus-per-node 8 --gpu a100-80g --images 1281167 --search",
    ),
    "scale": (
        "ijepa_ds.scale.command",
        "run or plan a ladder of models and budgets, fit power laws, predict the next rung",
        "ijepa-ds scale configs/ladder_cifar10.yaml",
    ),
    "doctor": (
        "ijepa_ds.doctor.command",
        "look for what would stop a run on its hosts, before it starts",
        "ijepa-ds doctor --hostfile hostfile --config configs/in1k_vith14.yaml --deepspeed_config ds_configs/zero3.json",
    ),
    "supervise": (
        "ijepa_ds.cluster.supervise",
        "run a training command and start it again after a failure",
        "ijepa-ds supervise -- deepspeed --num_gpus 8 --module ijepa_ds.train --config configs/in1k_vith14.yaml ...",
    ),
    "summary": (
        "ijepa_ds.visualize.summary",
        "one picture of a run: loss, masks, scores",
        "ijepa-ds summary --run runs/x --eval runs/x/eval --out runs/x/summary.png",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """All verbs. Modules of a verb are imported only when it is the one asked for."""
    parser = argparse.ArgumentParser(prog="ijepa-ds", description=__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"ijepa_ds {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    nested: dict[str, argparse._SubParsersAction] = {}
    for words, (module, line, example) in VERBS.items():
        first, _, second = words.partition(" ")
        if second:
            if first not in nested:
                group = verbs.add_parser(first, help=f"{first} tools", description=f"{first} tools")
                nested[first] = group.add_subparsers(dest="subverb", required=True, metavar="VERB")
            target, name = nested[first], second
        else:
            target, name = verbs, first
        sub = target.add_parser(name, help=line, description=line, epilog=f"example: {example}", add_help=True)
        sub.set_defaults(module=module)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; 0 on success, 2 when the user has to mend something."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    arguments = list(sys.argv[1:] if argv is None else argv)
    for words, (module_name, line, example) in VERBS.items():
        parts = words.split()
        if arguments[: len(parts)] == parts:
            module = importlib.import_module(module_name)
            parser = argparse.ArgumentParser(prog=f"ijepa-ds {words}", description=line, epilog=f"example: {example}")
            module.add_arguments(parser)
            try:
                return module.run(parser.parse_args(arguments[len(parts) :]))
            except (ValueError, OSError, RuntimeError) as error:
                print(f"ijepa-ds {words}: {error}", file=sys.stderr)
                return 2
    build_parser().parse_args(arguments)  # --help, --version, or an error that lists the verbs
    return 2


if __name__ == "__main__":
    sys.exit(main())
