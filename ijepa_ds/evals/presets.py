"""The paper's evaluation protocols: options of `ijepa-ds eval`, layout of the data set, published numbers.

Source: paper, tables 1 to 5 and appendices A.2 and D; target encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Keys are argument names of `ijepa-ds eval`.
_HEADS_OF_PAPER = {
    "solver": ["lars"], "lr": [0.01, 0.05, 0.001], "weight_decay": [0.0005, 0.0], "epochs": 50, "head_batch_size": 16384,
    "schedule": "step", "decay_every": 15, "nesterov": False, "decay_biases": False, "augment": True, "select": "test",
}  # fmt: skip
_VISSL = {
    "solver": ["sgd"], "lr": [0.01], "weight_decay": [0.0005], "head_batch_size": 256, "nesterov": True, "decay_biases": True,
    "select": "test",
}  # fmt: skip
_ONE_PERCENT = {"l2": 0.0025, "normalise": "rows"}
_CLASS_FOLDERS = "one folder a class in each of --train and --test"
_FOUR_HEADS = "SGD, Nesterov 0.9, lr 0.01 for 256 images, batch 256, decay 0.0005 of weights and biases, 4 heads"
_PHOTOGRAPHS = "random crops of 8 to 100 %, flips; tests 256/224, centre"
_VISSL_SOURCE = "VISSL, `{}` with `models/vit_*_no_cls`"


@dataclass(frozen=True)
class Preset:
    """One evaluation protocol.

    Attributes:
        task: of `ijepa-ds eval`.
        options: values of options that the command line does not give.
        layout: the data set and its layout on disk.
        num_classes: of the paper's data set.
        published: percent by model, such as {"huge/14": 79.3}.
        score: the score to compare with the published number.
        protocol: as published.
        source: of the protocol.
        apart: differences from it, and what is not known about it.
    """

    task: str
    options: Mapping[str, Any]
    layout: str
    num_classes: int
    published: Mapping[str, float] = field(default_factory=dict)
    score: str = ""
    protocol: str = ""
    source: str = ""
    apart: str = ""


_UNKNOWN = "the paper does not say that it used these files, nor on which images the best of the heads was chosen"

PRESETS: dict[str, Preset] = {
    "paper-linear": Preset(
        "linear",
        _HEADS_OF_PAPER,
        "ImageNet-1k: ILSVRC2012/train and ILSVRC2012/val, " + _CLASS_FOLDERS + " (n01440764 ...)",
        1000,
        {"base/16": 72.9, "large/16": 77.5, "huge/14": 79.3, "huge/16@448": 81.1},
        "linear LARS",
        "LARS, batch 16384, 50 epochs, rate / 10 every 15; rates 0.01, 0.05, 0.001 x decays 0.0005, 0; last layer and last "
        "four, with and without batch normalisation; the best head on the test images",
        "paper, appendix A.2",
        "the crops of the training images and LARS's trust ratio (0.001 here) are not published",
    ),
    "paper-1pct": Preset(
        "lowshot",
        _ONE_PERCENT | {"tune_few": True, "lr": [3e-5], "weight_decay": [0.05], "epochs": 50, "head_batch_size": 512},
        "ImageNet-1k as in paper-linear; --list: SimCLR's 1percent.txt, the names of 12,811 training images",
        1000,
        {"large/16": 69.4, "huge/14": 73.3, "huge/16@448": 77.3},
        "low-shot fine-tuned",
        "AdamW, batch 512, 50 epochs, lr 3e-5, layer decay 0.75, no mixup, cutmix and drop path; weight decay 0.05 (ViT-L), "
        "0.4 (ViT-H)",
        "paper, appendix A.2",
        "for ViT-H give --weight-decay 0.4; the warm-up (10 % here) is not published",
    ),
    "paper-1pct-linear": Preset(
        "lowshot",
        _ONE_PERCENT,
        "as paper-1pct",
        1000,
        {"base/16": 57.1, "large/16": 64.2, "huge/14": 62.9},
        "low-shot",
        "features minus their own mean, of length 1, no bias; penalty 0.0025 / (2 n) times the squared norm of the weights",
        "MSN, `logistic_eval.py`; penalty: paper, appendix A.2",
        "MSN stops at a duality gap of 1e-3 or 300 epochs of Cyanure; here L-BFGS converges. 54.2 is the paper's number for "
        "ViT-B/16 after 300 epochs, in its ablation of masks",
    ),
    "paper-finetune": Preset(
        "finetune",
        {"lr": [1e-4], "weight_decay": [0.05], "epochs": 50, "head_batch_size": 528},
        "ImageNet-1k as in paper-linear",
        1000,
        {"huge/16@448": 87.1},
        "fine-tuned",
        "AdamW, batch 528, 50 epochs, lr 1e-4, cosine, layer decay 0.75, mixup 0.8, cutmix 1, RandAugment, drop path 0.25",
        "paper, appendix A.2",
        "weight decay (0.05 here) and warm-up (10 % here) are not published",
    ),
    "paper-cifar100": Preset(
        "linear",
        _VISSL | {"augment": True, "epochs": 28, "schedule": "step", "decay_every": 8, "image_size": 224},
        "CIFAR-100 written as images: train and test, " + _CLASS_FOLDERS + "; resized to 224 pixels",
        100,
        {"base/16": 69.2, "large/16": 83.6, "huge/14": 87.5},
        "linear SGD",
        f"{_FOUR_HEADS}; 28 epochs, rate / 10 at 8, 16, 24; {_PHOTOGRAPHS}",
        _VISSL_SOURCE.format("cifar100"),
        _UNKNOWN,
    ),
    "paper-places205": Preset(
        "linear",
        _VISSL | {"augment": True, "epochs": 14, "schedule": "step", "decay_every": 4},
        "Places205: train and val, " + _CLASS_FOLDERS,
        205,
        {"base/16": 53.4, "large/16": 56.5, "huge/14": 58.4},
        "linear SGD",
        f"{_FOUR_HEADS}; 14 epochs, rate / 10 at 4, 8, 12; {_PHOTOGRAPHS}",
        _VISSL_SOURCE.format("places205"),
        _UNKNOWN,
    ),
    "paper-inat18": Preset(
        "linear",
        _VISSL | {"augment": True, "epochs": 84, "schedule": "step", "decay_every": 24},
        "iNaturalist 2018: train and val, one folder a category id in each (sort train_val2018 by the annotation files)",
        8142,
        {"base/16": 43.4, "large/16": 48.4, "huge/14": 47.6},
        "linear SGD",
        f"{_FOUR_HEADS}; 84 epochs, rate / 10 at 24, 48, 72; {_PHOTOGRAPHS}",
        _VISSL_SOURCE.format("inaturalist18"),
        _UNKNOWN,
    ),
    "paper-clevr-count": Preset(
        "count",
        _VISSL | {"epochs": 50, "schedule": "cosine"},
        "CLEVR_v1.0: --train CLEVR_v1.0/images/train --test CLEVR_v1.0/images/val (scenes in CLEVR_v1.0/scenes)",
        8,
        {"base/16": 82.2, "large/16": 85.6, "huge/14": 86.7},
        "count",
        f"{_FOUR_HEADS}; 50 epochs, cosine to 1 %; whole images, resized to a square, flips",
        _VISSL_SOURCE.format("clevr_count"),
        _UNKNOWN,
    ),
    "paper-clevr-dist": Preset(
        "distance",
        _VISSL | {"epochs": 100, "schedule": "cosine"},
        "as paper-clevr-count",
        6,
        {"base/16": 70.7, "large/16": 71.2, "huge/14": 72.4},
        "distance",
        f"{_FOUR_HEADS}; 100 epochs, cosine to 1 %; whole images, resized to a square, flips",
        _VISSL_SOURCE.format("clevr_dist"),
        _UNKNOWN,
    ),
}


def markdown() -> str:
    """The table of docs/evaluate.md: each preset's published protocol, the options that it sets, and the source."""
    lines = ["| preset | published protocol and source | options of the preset | differences, unknowns |", "|---|---|---|---|"]
    for name, preset in PRESETS.items():
        options = ", ".join(f"{key} {_plain(value)}" for key, value in preset.options.items())
        lines.append(f"| `{name}` | {preset.protocol} ({preset.source}) | {options} | {preset.apart} |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_plain(entry) for entry in value)
    return (
        {True: "yes", False: "no"}[value]
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def check_classes(name: str, found: int) -> None:
    """Check that images have the classes of the paper's data set: the published numbers hold for it only.

    Args:
        name: of the preset.
        found: number of classes.

    Raises:
        ValueError: another number.
    """
    preset = PRESETS[name]
    if found != preset.num_classes:
        raise ValueError(
            f"--preset {name}: the paper's data set has {preset.num_classes} classes, --train has {found}. Expected: "
            f"{preset.layout}. If a class is another part of the path, see --class-level; without --preset any data set "
            "is evaluated"
        )


def published(name: str, model: str, size: int) -> dict[str, Any]:
    """The paper's numbers for a preset.

    Args:
        name: of the preset.
        model: such as huge/14.
        size: of the images in pixels.

    Returns:
        `score`: name of the score; `value`: the number for this model or None; `all`: numbers by model.
    """
    preset = PRESETS[name]
    value = preset.published.get(model if size == 224 else f"{model}@{size}")
    return {"preset": name, "score": preset.score, "value": value, "all": dict(preset.published), "apart": preset.apart}
