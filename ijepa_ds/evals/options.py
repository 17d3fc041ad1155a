"""The settings that the options of `ijepa-ds eval` mean."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any, Protocol

from ijepa_ds.evals import scenes, settings
from ijepa_ds.evals.cache import default_folder
from ijepa_ds.evals.dense import pairs as dense
from ijepa_ds.evals.presets import PRESETS
from ijepa_ds.evals.settings import Settings
from ijepa_ds.evals.subject import default_device
from ijepa_ds.options.evals import SOLVERS


def dense_source(args: argparse.Namespace, settings: Settings) -> dense.Source:
    """What options say about the sources of segment or depth."""
    given = _given(args, "layout", "labels", "ignore", "depth_scale", "max_depth")
    return dense.Source(task=args.task, max_pixels=settings.max_pixels, values=settings.values, **given)


_SWEEP = ("linear", "count", "distance")
_TRAINED = (*_SWEEP, "attentive", "finetune", "lowshot", *dense.TASKS)
# Which tasks use an option; options that are not here concern every task.
USED_BY = {
    **dict.fromkeys(("k", "temperature"), ("knn", "all")),
    **dict.fromkeys(("c", "max_iterations"), ("linear", "all")),
    "solver": (*_SWEEP, "all"),
    **dict.fromkeys(("lr", "weight_decay", "epochs", "head_batch_size"), _TRAINED),
    **dict.fromkeys(("schedule", "decay_every", "nesterov", "decay_biases"), _SWEEP),
    "augment": ("linear",),
    "select": (*_SWEEP, "attentive"),
    "pool": scenes.TASKS,
    "token_gib": ("attentive", *scenes.TASKS, *dense.TASKS),
    **dict.fromkeys(("per_class", "list_file", "draws", "l2", "normalise", "tune_few"), ("lowshot",)),
    **dict.fromkeys(("views", "view_images"), ("rank",)),
    **dict.fromkeys(("ignore", "bank"), ("segment",)),
    **dict.fromkeys(("layout", "labels"), dense.TASKS),
    **dict.fromkeys(("depth_scale", "max_depth"), ("depth",)),
    "layers": (*dense.TASKS, "knn", "linear", "lowshot", "rank", "count", "distance", "all"),
}
_OPTION_NAMES = {"c": "--C", "list_file": "--list", "tune_few": "--finetune"}


def check_used(args: argparse.Namespace) -> None:
    """Refuse options that the task does not use: a result must not look as if they had counted.

    Raises:
        ValueError: names all of them.
    """
    given = [option for option in USED_BY if (value := getattr(args, option)) is not None and value is not False]
    unused = {option: f"used by {', '.join(USED_BY[option])} only" for option in given if args.task not in USED_BY[option]}
    solvers = args.solver or (["lbfgs"] if args.task == "all" else SOLVERS)
    for option in given:
        if option in unused or args.task not in ("linear", "all"):
            continue
        if option in ("c", "max_iterations") and "lbfgs" not in solvers:
            unused[option] = "it is for --solver lbfgs"
        swept = option in ("lr", "weight_decay", "epochs", "head_batch_size", "augment", "select", *_SCHEDULE)
        if swept and not {"sgd", "lars"} & {*solvers}:
            unused[option] = "it is for --solver sgd or lars"
    if args.task in scenes.TASKS:
        attentive = args.pool == "attentive"
        apart = ("solver", "layers", *_SCHEDULE) if attentive else ("token_gib",)
        unused |= {option: f"it is {'not ' if attentive else ''}for --pool attentive" for option in given if option in apart}
    if args.task in dense.TASKS and args.layout not in (None, "folders"):
        unused |= {option: f"--layout {args.layout} says it" for option in given if option in ("labels", "ignore")}
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
    if args.pool not in (None, "mean"):
        other.append(f"pool {args.pool} instead of mean")
    return [f"not the protocol of {args.preset}: {', '.join(other)}"] if other else []


class Images(Protocol):
    """Image size in pixels, mean and deviation that an encoder was trained with; `weights.Facts` has them."""

    @property
    def image_size(self) -> int: ...  # noqa: D102
    @property
    def mean(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def std(self) -> tuple[float, ...]: ...  # noqa: D102


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
    single = args.task in ("finetune", "lowshot", *dense.TASKS)
    if single and any(len(value) > 1 for value in _given(args, "lr", "weight_decay").values()):
        raise ValueError(f"--lr, --weight-decay: {args.task} takes one of each")
    default = ("lbfgs",) if args.task == "all" else SOLVERS if args.task == "linear" else ("sgd", "lars")
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
        dense_recipe=replace(base.dense_recipe, **one, **trained),
        device=args.device or default_device(local_rank),
        cache=None if args.no_cache else str(args.cache or default_folder()),
        cache_gib=args.cache_gib,
        **({"layers": "last"} if args.pool == "grid4" else {}) | _given(args, *_SAME),
    )


_SAME = (
    "k", "temperature", "c", "max_iterations", "per_class", "draws", "views", "view_images", "batch_size", "threads",
    "precision", "seed", "token_gib", "augment", "select", "tune_few", "layers", "l2", "list_file", "normalise", "bank",
    "pool",
)  # fmt: skip


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
