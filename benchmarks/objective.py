"""Screens options of the objective: short runs through the real trainer, then scores of the frozen target encoder.

    python -m benchmarks.objective --out runs/screen --data objects=data/objects/train,data/objects/test \
        cifar10=data/cifar10/train,data/cifar10/test --steps 1500 --seeds 0 --options recipe hidden context

Every finished run is a line of OUT/results.jsonl, or of `--results` (ours are in benchmarks/objective.jsonl). The same
command continues where it was stopped: finished runs are skipped, and an unfinished one resumes from its checkpoint.
`--equal-time` gives every option the training time that `recipe` had, from the lines that are there. `--table` prints the
table and runs nothing.

Scores, in percent: 20-NN and linear on the averaged output patches; `last 4`: linear on the averaged patches of the last
four blocks, side by side; `patches`: linear on a 4 x 4 grid of averaged output patches, side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.objective_scores import SCORES, score
from ijepa_ds import config
from ijepa_ds.config.sizes import size_of
from ijepa_ds.durable import append_lines
from ijepa_ds.evals.subject import open_subject
from ijepa_ds.telemetry.events import read_scalars

ROOT = Path(__file__).resolve().parents[1]
# By name of the data set; --set overrides them.
DATA: dict[str, tuple[str, ...]] = {
    "objects": (),
    "cifar10": ("data.crop_size=32", "model.patch_size=4", "data.mean=[0.491,0.482,0.447]", "data.std=[0.247,0.243,0.262]"),
    "tinyimagenet": ("data.mean=[0.480,0.448,0.398]", "data.std=[0.277,0.269,0.282]"),
}
_PUBLISHED = (
    *("masks.sampler=published", "masks.context_tokens=null", "masks.min_keep=3", "masks.truncation_group=32"),
    *("data.crop_scale=[0.3,1.0]", "data.horizontal_flip=false"),
    *("optimization.betas=[0.9,0.999]", "optimization.final_weight_decay=0.4", "optimization.ema=[0.996,1.0]"),
)
# Overrides; `{every}` and `{last}` stand for four evenly spaced blocks, and for the last one.
OPTIONS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "published": _PUBLISHED,
    "hidden": ("targets.layers={every}",),
    "hidden-mean": ("targets.layers={every}", "targets.combine=mean"),
    "last-block": ("targets.layers={last}",),
    "tanh": ("targets.norm=tanh",),
    "tanh-block": ("targets.layers={last}", "targets.norm=tanh"),
    "no-norm": ("targets.norm=none",),
    "context": ("objective.context_weight=0.5", "objective.context_warmup=0.1"),
    "context-1": ("objective.context_weight=1.0", "objective.context_warmup=0.1"),
    "context-2": ("objective.context_weight=2.0", "objective.context_warmup=0.1"),
    "spread": ("objective.variance_weight=0.025", "objective.covariance_weight=0.001", "objective.projection=128"),
    "residual": ("model.precision=bfloat16", "model.residual=bfloat16"),
    "contexts-2": ("masks.num_contexts=2",),
    "targets-8": ("masks.num_targets=8", "masks.allow_overlap=true"),
    "hidden+context": ("targets.layers={every}", "objective.context_weight=0.5", "objective.context_warmup=0.1"),
    "hidden+contexts-2": ("targets.layers={every}", "masks.num_contexts=2"),
}
RATES = {"quarter": 0.25, "half": 0.5, "double": 2.0, "quadruple": 4.0}
# How much each number of a recipe matters (docs/tune.md). `{lr_half}` and the like stand for
# multiples of the recipe's rate.
SENSITIVITY: dict[str, tuple[str, ...]] = {
    **{f"ema-{start}": (f"optimization.ema=[{start}, 1.0]",) for start in ("0.95", "0.98", "0.99", "0.998", "0.9995")},
    **{f"lr-{factor}": (f"optimization.lr={{lr_{factor}}}",) for factor in RATES},
    "targets-small": ("masks.target_scale=[0.08, 0.12]",),
    "targets-large": ("masks.target_scale=[0.2, 0.3]",),
    "context-8": ("masks.context_tokens=8",),
    "context-24": ("masks.context_tokens=24",),
    "crop-0.3": ("data.crop_scale=[0.3, 1.0]",),
    "crop-1": ("data.crop_scale=[1.0, 1.0]",),
    "no-flip": ("data.horizontal_flip=false",),
    "predictor-2": ("model.predictor.depth=2",),
    "pixels-imagenet": ("data.mean=[0.485, 0.456, 0.406]", "data.std=[0.229, 0.224, 0.225]"),
}


class Plan(NamedTuple):
    """One run."""

    data: str
    option: str
    seed: int
    steps: int
    overrides: tuple[str, ...]
    task: str = ""  # fingerprint of the complete configuration: another --config makes other runs

    @property
    def name(self) -> str:
        """The folder of the run."""
        return f"{self.data}-{self.option}-seed{self.seed}-{self.steps}-{self.task[:6]}"

    @property
    def keys(self) -> tuple[str, ...]:
        """All overrides."""
        length = (f"optimization.steps={self.steps}", f"optimization.warmup_steps={self.steps // 12}")
        return (f"run.seed={self.seed}", *length, *self.overrides)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.jsonl and the runs")
    parser.add_argument("--results", type=Path, help="where the results are kept (OUT/results.jsonl)")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=TRAIN,TEST", help="labelled images: folders or tars")
    parser.add_argument(
        "--options", nargs="+", choices=tuple(OPTIONS | SENSITIVITY), default=list(OPTIONS), help="what to try (OPTIONS)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="run.seed of each repetition (0)")
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps of a run (1500)")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "scenes_tiny.yaml", help="the recipe")
    parser.add_argument("--deepspeed_config", type=Path, default=ROOT / "ds_configs" / "zero0.json")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="further overrides, for every run")
    parser.add_argument("--equal-time", action="store_true", help="as much training time as `recipe`, instead of --steps")
    parser.add_argument("--max-train", type=int, default=10000, help="labelled images for the scores, at most (10000)")
    parser.add_argument("--max-test", type=int, default=2500, help="scored images, at most (2500)")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints of finished runs")
    parser.add_argument("--table", action="store_true", help="print the table of results and end")
    return parser.parse_args(argv)


def plans_of(args: argparse.Namespace, lines: Sequence[dict[str, Any]]) -> Iterator[Plan]:
    """The runs of a command, `recipe` first; an option is tried on every data set before the next one."""
    for seed in args.seeds:
        for option in sorted(args.options, key=lambda name: name != "recipe"):
            for data, train in ((name, paths[0]) for name, paths in sources(args.data).items()):
                fixed = (*DATA.get(data, ()), *args.set, f"data.source={train}")
                cfg = config.load(args.config, fixed)
                depth = size_of(cfg.model).depth
                every = [round(depth * (i + 1) / 4) for i in range(4)] if depth >= 4 else list(range(1, depth + 1))
                values: dict[str, Any] = {"every": every, "last": [depth]}
                values |= {f"lr_{name}": cfg.optimization.lr * factor for name, factor in RATES.items()}
                own = [text.format(**values) for text in (OPTIONS | SENSITIVITY)[option]]
                plan = Plan(data, option, seed, args.steps, (*fixed, *own))
                if args.equal_time:
                    plan = plan._replace(steps=_as_long_as_recipe(plan, lines))
                yield plan._replace(task=config.fingerprint(config.load(args.config, plan.keys)))


def _as_long_as_recipe(plan: Plan, lines: Sequence[dict[str, Any]]) -> int:
    """Steps that take an option as long as `recipe` took for `plan.steps`, by the runs of that many steps."""

    def step(option: str) -> float:
        keys = {"data": plan.data, "option": option, "seed": plan.seed, "steps": plan.steps}
        found = [line["step_seconds"] for line in lines if all(line[key] == value for key, value in keys.items())]
        if not found:
            raise SystemExit(f"--equal-time: first run {option} on {plan.data}, seed {plan.seed}, with --steps {plan.steps}")
        return float(found[-1])

    return round(plan.steps * step("recipe") / step(plan.option))


def sources(texts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Training and test images by name of the data set."""
    found = {}
    for text in texts:
        name, _, both = text.partition("=")
        train, _, test = both.partition(",")
        if not name or not Path(train).exists() or not Path(test).exists():
            raise SystemExit(f"--data {text}: expected NAME=TRAIN,TEST, two folders or tars with a folder a class")
        found[name] = (os.path.abspath(train), os.path.abspath(test))
    return found


def train(plan: Plan, args: argparse.Namespace, folder: Path) -> None:
    """Train, or continue; ends this program if the trainer fails."""
    command = [
        *(sys.executable, "-m", "ijepa_ds.train", "--config", str(args.config)),
        *("--deepspeed_config", str(args.deepspeed_config), f"run.dir={folder}", "run.keep_last=1"),
        *(f"run.checkpoint_every={max(1, plan.steps // 4)}", f"run.probe_every={max(1, plan.steps // 8)}", *plan.keys),
    ]
    with (args.out / f"{plan.name}.log").open("a") as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        raise SystemExit(f"{plan.name}: the trainer ended with code {code}, see {log.name}; the same command continues")


def measure(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one run; a line of results."""
    folder = args.out / plan.name
    train(plan, args, folder)
    points, paths = read_scalars(folder), sources(args.data)[plan.data]
    started = time.perf_counter()
    found = {}
    for which in ("target", "untrained") if plan.option == "recipe" else ("target",):
        subject = open_subject(str(folder), which, None, None)
        found[which] = score(subject.encoder, subject.facts, paths, args.max_train, args.max_test)
    result = {
        **plan._asdict(),
        "overrides": [text for text in plan.overrides if not text.startswith("data.source=")],  # the same on every machine
        "scores": found["target"],
        "untrained": found.get("untrained"),
        "loss": float(points["loss"][1][-1]),
        "step_seconds": statistics.median(points["speed/seconds_per_step"][1].tolist()),
        "rank": float(points["probe/target_effective_rank"][1][-1]),
        "target_std": float(points["probe/target_std"][1][-1]),
        "score_seconds": round(time.perf_counter() - started, 1),
    }
    if not args.keep:
        shutil.rmtree(folder / "checkpoints")
    return result


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Means over seeds, with the standard deviation where there are several."""
    titles = ("data", "option", "steps", "seeds", "s/step", *SCORES)
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    groups: dict[tuple[str, str, int, tuple[str, ...]], list[dict[str, Any]]] = {}
    for line in lines:
        if line["untrained"]:
            groups.setdefault((line["data"], "untrained", 0, ()), []).append(line | {"scores": line["untrained"]})
        groups.setdefault((line["data"], line["option"], line["steps"], tuple(line["overrides"])), []).append(line)
    for (data, option, steps, _), group in sorted(groups.items()):
        seconds = "" if option == "untrained" else f"{statistics.mean(line['step_seconds'] for line in group):.3f}"
        cells = []
        for name in SCORES:
            values = [line["scores"][name] for line in group]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        rows.append(f"| {data} | {option} | {steps} | {len(group)} | {seconds} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, then print the table."""
    args = parse_arguments(argv)
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.results or args.out / "results.jsonl"
    torch.set_num_threads(1)
    for plan in [] if args.table else list(plans_of(args, read(results))):
        if any((line["task"], line["data"]) == (plan.task, plan.data) for line in read(results)):
            continue
        print(f"{plan.name} ...", flush=True)
        line = measure(plan, args)
        append_lines(results, [json.dumps(line)])
        print("   ", ", ".join(f"{name} {value:.1f}" for name, value in line["scores"].items()), flush=True)
    print(table(read(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
