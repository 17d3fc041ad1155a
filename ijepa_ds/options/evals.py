"""The options of `ijepa-ds eval`. A test compares the names of tasks, presets and precisions with their tables."""

from __future__ import annotations

import argparse

from ijepa_ds.arguments import WEIGHTS, add_batch_size, add_columns, add_heads, add_out, add_seed, add_threads, parse_level

TASKS = ("knn", "linear", "attentive", "lowshot", "finetune", "count", "distance", "segment", "depth", "rank")
PRESETS = (
    "paper-linear",
    "paper-1pct",
    "paper-1pct-linear",
    "paper-finetune",
    "paper-cifar100",
    "paper-places205",
    "paper-inat18",
    "paper-clevr-count",
    "paper-clevr-dist",
)
BASELINES = ("untrained", "pixels")
NEIGHBOURS = (10, 20, 100, 200)
SOLVERS = ("lbfgs", "sgd", "lars")
LAYERS = ("last", "last4")
POOLS = ("mean", "attentive", "grid4")
SELECT = ("test", "holdout")
NORMALISE = ("columns", "rows")
PRECISIONS = ("float32", "bfloat16")
LAYOUTS = ("folders", "ade20k", "voc2012", "cityscapes")
_TASKS = """\
knn        weighted vote of the k nearest training images
linear     linear classifiers: L-BFGS to the end, and a sweep of SGD and LARS heads in parallel
attentive  a small cross-attention head on patch tokens, several recipes in parallel
lowshot    a few labelled images a class: logistic regression over a path of C, and fine-tuning
finetune   the whole encoder, with mixup, cutmix and RandAugment
count, distance   CLEVR-format scenes: number of objects, distance of the nearest
segment    a class for each pixel: k-NN and a linear head on patch tokens; mIoU
depth      a depth for each pixel: a linear head on patch tokens; RMSE, AbsRel, delta1
rank       RankMe, LiDAR and the spectrum of the test images' features; no labels are used
all        knn and linear by L-BFGS: quick, for following runs and comparing them
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare all options."""
    parser.description = f"{parser.description or ''}\n\n{_TASKS}"
    parser.add_argument("task", choices=(*TASKS, "all"), help="what to measure")
    parser.add_argument("--checkpoint", required=True, help=WEIGHTS)
    parser.add_argument("--train", help="labelled images to learn from: one folder a class, or scenes (rank needs none)")
    parser.add_argument("--test", required=True, help="labelled images to score: the same classes")
    add_out(parser, "folder for result.json, pictures and TensorBoard scalars")
    parser.add_argument(
        "--which",
        choices=("target", "context", *BASELINES),
        help="encoder (default: target, the EMA; of a file with one encoder, that)",
    )
    add_heads(parser)
    parser.add_argument("--baseline", nargs="+", default=[], choices=BASELINES, help="score these beside it, for comparison")
    parser.add_argument("--preset", choices=PRESETS, help="the paper's protocol; options that are given win")
    parser.add_argument("--image-size", type=int, help="pixels; default: as trained")
    parser.add_argument("--layers", choices=LAYERS, help="features (default: last; the sweep tries both)")
    parser.add_argument("--class-level", type=parse_level, metavar="N", help="as data.class_level, for --train and --test")
    parser.add_argument("--tar-end", choices=("error", "warn"), default="error", help="as data.tar_end")
    add_columns(parser)
    add_seed(parser, "for all random numbers")
    parser.add_argument("--max-train", type=_count, metavar="N", help="at most N training images, spread over the classes")
    parser.add_argument("--max-test", type=_count, metavar="N", help="at most N test images, spread over the classes")
    _machine(parser.add_argument_group("machine"))
    _quick(parser.add_argument_group("knn, and linear by L-BFGS"))
    _trained(parser.add_argument_group("heads that are trained: sweep of linear, count, distance; attentive; finetune"))
    text = "tokens that a head sees: their average (mean), averages of sixteenths (grid4), or all, by attention"
    parser.add_argument_group("count, distance").add_argument("--pool", choices=POOLS, help=text)
    _few(parser.add_argument_group("lowshot"))
    _dense(parser.add_argument_group("segment, depth"))
    group = parser.add_argument_group("rank")
    group.add_argument("--views", type=int, help="crops of an image for LiDAR (10)")
    group.add_argument("--view-images", type=int, help="images for LiDAR, at most (1000)")


def _machine(group: argparse._ArgumentGroup) -> None:
    add_batch_size(group, 256)
    add_threads(group, 2)
    group.add_argument("--device", help="such as cpu or cuda:0; default: cuda if available")
    group.add_argument("--precision", choices=PRECISIONS, default="float32", help="of matrix products")

    text = "folder of features of earlier evaluations (default: $IJEPA_DS_CACHE, or ~/.cache/ijepa_ds)"
    group.add_argument("--cache", metavar="FOLDER", help=text)
    group.add_argument(
        "--cache-gib", type=float, default=4.0, help="size of that folder; features used longest ago go first (4)"
    )
    group.add_argument("--no-cache", action="store_true", help="compute all features, and keep none")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of images, at least 1")
    return int(text)


def _quick(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--k", type=int, nargs="+", help=f"numbers of neighbours ({' '.join(map(str, NEIGHBOURS))})")
    group.add_argument("--temperature", type=float, nargs="+", help="of the k-NN vote (0.07)")
    group.add_argument("--C", dest="c", type=float, help="inverse L2 strength of the linear classifier (1)")
    group.add_argument("--max-iterations", type=int, help="of its solver (2000)")


def _trained(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--solver", nargs="+", choices=SOLVERS, help="of linear (default: all), count, distance")
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
    group.add_argument("--select", choices=SELECT, help="choose the best head on test images, or a training holdout")
    group.add_argument("--token-gib", type=float, help="keep tokens in memory up to this size (attentive, segment, depth; 2)")


def _dense(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--layout", choices=LAYOUTS, help="of --train and --test (folders: DIR/images and DIR/masks or depth)")
    group.add_argument("--labels", metavar="NAME", help="folder of labels beside `images` (masks, or depth)")
    group.add_argument("--ignore", type=int, help="label of pixels that are not scored (255)")
    group.add_argument("--bank", type=int, help="labelled patches for k-NN, about (100000)")
    group.add_argument("--depth-scale", type=float, help="values of an integer depth file per unit (1000)")
    group.add_argument("--max-depth", type=float, help="larger depths are not scored")


def _few(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--per-class", type=int, help="labelled images of each class (10)")
    group.add_argument("--list", dest="list_file", help="a text file with the names of the labelled images instead")
    group.add_argument("--draws", type=int, help="of the images of each class; scores are averaged (1)")
    group.add_argument(
        "--l2", type=float, help="one penalty instead of a path of C: l2 / (2 n) |W|^2 on the mean loss, C = 1 / l2"
    )
    group.add_argument("--normalise", choices=NORMALISE, help="features by column, or by image as in MSN (columns)")
    group.add_argument("--finetune", dest="tune_few", action="store_true", default=None, help="fine-tune on them too")
