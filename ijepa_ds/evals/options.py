"""The options of `ijepa-ds eval`, and the settings that they mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, Protocol

from ijepa_ds.arguments import WEIGHTS, add_batch_size, add_columns, add_heads, add_out, add_seed, add_threads, parse_level
from ijepa_ds.evals import knn, scenes, settings, tasks
from ijepa_ds.evals.presets import PRESETS
from ijepa_ds.evals.settings import Settings
from ijepa_ds.evals.subject import BASELINES, default_device

_TASKS = """\
knn        weighted vote of the k nearest training images
linear     linear classifiers: L-BFGS to the end, and a sweep of SGD and LARS heads in parallel
attentive  a small cross-attention head on patch tokens, several recipes in parallel
lowshot    a few labelled images a class: logistic regression over a path of C, and fine-tuning
finetune   the whole encoder, with mixup, cutmix and RandAugment
count, distance   CLEVR-format scenes: number of objects, distance of the nearest
rank       RankMe, LiDAR and the spectrum of the test images' features; no labels are used
all        knn and linear by L-BFGS: quick, for following runs and comparing them
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare all options."""
    parser.description = f"{parser.description or ''}\n\n{_TASKS}"
    parser.add_argument("task", choices=(*tasks.TASKS, "all"), help="what to measure")
    parser.add_argument("--checkpoint", required=True, help=WEIGHTS)
    parser.add_argument("--train", required=True, help="labelled images to learn from: one folder a class, or scenes")
    parser.add_argument("--test", required=True, help="labelled images to score: the same classes")
    add_out(parser, "folder for result.json, pictures and TensorBoard scalars")
    parser.add_argument(
        "--which",
        choices=("target", "context", *BASELINES),
        help="encoder (default: target, the EMA; of a file with one encoder, that)",
    )
    add_heads(parser)
    parser.add_argument("--baseline", nargs="+", default=[], choices=BASELINES, help="score these beside it, for comparison")
    parser.add_argument("--preset", choices=tuple(PRESETS), help="the paper's protocol; options that are given win")
    parser.add_argument("--image-size", type=int, help="pixels; default: as trained")
    parser.add_argument("--layers", choices=tuple(settings.LAYERS), help="features (default: last; the sweep tries both)")
    parser.add_argument("--class-level", type=parse_level, metavar="N", help="as data.class_level, for --train and --test")
    parser.add_argument("--tar-end", choices=("error", "warn"), default="error", help="as data.tar_end")
    add_columns(parser)
    add_seed(parser, "for all random numbers")
    _machine(parser.add_argument_group("machine"))
    _quick(parser.add_argument_group("knn, and linear by L-BFGS"))
    _trained(parser.add_argument_group("heads that are trained: sweep of linear, count, distance; attentive; finetune"))
    _few(parser.add_argument_group("lowshot"))
    group = parser.add_argument_group("rank")
    group.add_argument("--views", type=int, help="crops of an image for LiDAR (10)")
    group.add_argument("--view-images", type=int, help="images for LiDAR, at most (1000)")


def _machine(group: argparse._ArgumentGroup) -> None:
    add_batch_size(group, 256)
    add_threads(group, 2)
    group.add_argument("--device", help="such as cpu or cuda:0; default: cuda if available")
    group.add_argument("--precision", choices=tuple(settings.PRECISIONS), default="float32", help="of matrix products")


def _quick(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--k", type=int, nargs="+", help=f"numbers of neighbours ({' '.join(map(str, knn.NEIGHBOURS))})")
    group.add_argument("--temperature", type=float, nargs="+", help="of the k-NN vote (0.07)")
    group.add_argument("--C", dest="c", type=float, help="inverse L2 strength of the linear classifier (1)")
    group.add_argument("--max-iterations", type=int, help="of its solver (2000)")


def _trained(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--solver", nargs="+", choices=settings.SOLVERS, help="of linear (default: all), count, distance")
    group.add_argument("--lr", type=float, nargs="+", help="learning rates to try; of linear heads for a batch of 256")
    group.add_argument("--weight-decay", type=float, nargs="+", help="weight decays to try")
    group.add_argument("--epochs", type=int, help="passes over the training images")
    group.add_argument("--head-batch-size", type=int, help="images an update")
    group.add_argument("--schedule", choices=("step", "cosine"), help="of the sweep (default: step)")
    group.add_argument("--decay-every", type=int, help="epochs after which `step` divides the rate by 10 (15)")
    group.add_argument("--nesterov", action=argparse.BooleanOptionalAction, help="Nesterov's momentum in the sweep")
    group.add_argument("--decay-biases", action=argparse.BooleanOptionalAction, help="weight decay of the sweep's biases too")
    group.add_argument(
        "--augment", action=argparse.BooleanOptionalAction, help="train the sweep on new random crops and flips each epoch"
    )
    group.add_argument("--select", choices=settings.SELECT, help="choose the best head on test images, or a training holdout")
    group.add_argument("--token-gib", type=float, help="keep tokens in memory up to this size (attentive; 2)")


def _few(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--per-class", type=int, help="labelled images of each class (10)")
    group.add_argument("--list", dest="list_file", help="a text file with the names of the labelled images instead")
    group.add_argument("--draws", type=int, help="of the images of each class; scores are averaged (1)")
    group.add_argument(
        "--l2", type=float, help="one penalty instead of a path of C: l2 / (2 n) |W|^2 on the mean loss, C = 1 / l2"
    )
    group.add_argument("--normalise", choices=settings.NORMALISE, help="features by column, or by image as in MSN (columns)")
    group.add_argument("--finetune", dest="tune_few", action="store_true", default=None, help="fine-tune on them too")


_SWEEP = ("linear", "count", "distance")
_TRAINED = (*_SWEEP, "attentive", "finetune", "lowshot")
# Which tasks use an option; options that are not here concern every task.
USED_BY = {
    **dict.fromkeys(("k", "temperature"), ("knn", "all")),
    **dict.fromkeys(("c", "max_iterations"), ("linear", "all")),
    "solver": (*_SWEEP, "all"),
    **dict.fromkeys(("lr", "weight_decay", "epochs", "head_batch_size"), _TRAINED),
    **dict.fromkeys(("schedule", "decay_every", "nesterov", "decay_biases"), _SWEEP),
    "augment": ("linear",),
    "select": (*_SWEEP, "attentive"),
    "token_gib": ("attentive",),
    **dict.fromkeys(("per_class", "list_file", "draws", "l2", "normalise", "tune_few"), ("lowshot",)),
    **dict.fromkeys(("views", "view_images"), ("rank",)),
    "layers": ("knn", "linear", "lowshot", "rank", "count", "distance", "all"),
}
_OPTION_NAMES = {"c": "--C", "list_file": "--list", "tune_few": "--finetune"}


def check_used(args: argparse.Namespace) -> None:
    """Refuse options that the task does not use: a result must not look as if they had counted.

    Raises:
        ValueError: names all of them.
    """
    given = [option for option in USED_BY if getattr(args, option) not in (None, False)]
    unused = {option: f"used by {', '.join(USED_BY[option])} only" for option in given if args.task not in USED_BY[option]}
    solvers = args.solver or (["lbfgs"] if args.task == "all" else settings.SOLVERS)
    for option in given:
        if option in unused or args.task not in ("linear", "all"):
            continue
        if option in ("c", "max_iterations") and "lbfgs" not in solvers:
            unused[option] = "it is for --solver lbfgs"
        swept = option in ("lr", "weight_decay", "epochs", "head_batch_size", "augment", "select", *_SCHEDULE)
        if swept and not {"sgd", "lars"} & {*solvers}:
            unused[option] = "it is for --solver sgd or lars"
    if args.task == "lowshot":
        tuned = ("lr", "weight_decay", "epochs", "head_batch_size")
        if not args.tune_few:
            unused |= {option: "it is for --finetune" for option in given if option in tuned}
        if args.list_file:
            unused |= {option: "--list names the images" for option in given if option in ("per_class", "draws")}
    if unused:
        lines = [f"{_OPTION_NAMES.get(o, '--' + o.replace('_', '-'))}: {why}" for o, why in unused.items()]
        raise ValueError(f"options that `ijepa-ds eval {args.task}` does not use here; leave them out. " + "; ".join(lines))


_SCHEDULE = ("schedule", "decay_every", "nesterov", "decay_biases")


def apply_preset(args: argparse.Namespace) -> list[str]:
    """Fill options that were not given from `--preset`.

    Returns:
        a note for the reader of the scores, if options differ from the preset.

    Raises:
        ValueError: a preset of another task, or one that needs a list of images.
    """
    if not args.preset:
        return []
    preset = PRESETS[args.preset]
    if args.task != preset.task:
        raise ValueError(f"--preset {args.preset} is for `ijepa-ds eval {preset.task}`, not {args.task}")
    if args.preset.startswith("paper-1pct") and not args.list_file:
        raise ValueError(f"--preset {args.preset} needs --list: {preset.layout}")
    other = []
    for option, value in preset.options.items():
        if getattr(args, option) is None:
            setattr(args, option, value)
        elif getattr(args, option) != value:
            other.append(f"{option} {getattr(args, option)} instead of {value}")
    return [f"not the protocol of {args.preset}: {', '.join(other)}"] if other else []


class Images(Protocol):
    """Image size in pixels, mean and deviation that an encoder was trained with; `weights.Facts` has them."""

    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, float, float]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, float, float]: ...  # noqa: D102


def settings_of(args: argparse.Namespace, facts: Images, local_rank: int) -> Settings:
    """The settings that options mean for an encoder.

    Raises:
        ValueError: options that contradict each other.
    """
    base = Settings(size=args.image_size or facts.image_size, mean=facts.mean, std=facts.std)
    one = {key: value[0] for key, value in _given(args, "lr", "weight_decay").items()}
    if args.l2 is not None and args.l2 <= 0:
        raise ValueError(f"--l2: expected a number above 0, got {args.l2:g}")
    trained = {"epochs": args.epochs, "batch_size": args.head_batch_size}
    trained = {key: value for key, value in trained.items() if value is not None}
    many = _given(args, "lr", "weight_decay") | trained
    if args.task in ("finetune", "lowshot") and any(len(value) > 1 for value in _given(args, "lr", "weight_decay").values()):
        raise ValueError("--lr, --weight-decay: fine-tuning takes one of each")
    default = ("lbfgs",) if args.task == "all" else settings.SOLVERS if args.task == "linear" else ("sgd", "lars")
    solvers = tuple(args.solver or default)
    if args.task in scenes.TASKS and "lbfgs" in solvers:
        raise ValueError(f"--solver: {args.task} is scored by sgd and lars")
    return replace(
        base,
        tasks=settings.ALL if args.task == "all" else (args.task,),
        frame="whole" if args.task in scenes.TASKS else "crop",
        solvers=solvers,
        recipe=replace(base.recipe, **many, **_given(args, *_SCHEDULE)),
        attentive_recipe=replace(base.attentive_recipe, **many),
        finetune_recipe=replace(base.finetune_recipe, **one, **trained),
        few_recipe=replace(base.few_recipe, **one, **trained),
        device=args.device or default_device(local_rank),
        **_given(args, *_SAME),
    )


_SAME = (
    "k", "temperature", "c", "max_iterations", "per_class", "draws", "views", "view_images", "batch_size", "threads",
    "precision", "seed", "token_gib", "augment", "select", "tune_few", "layers", "l2", "list_file", "normalise",
)  # fmt: skip


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
