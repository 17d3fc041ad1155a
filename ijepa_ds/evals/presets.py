"""The paper's evaluation protocols: options of `ijepa-ds eval`, layout of the data set, published numbers.

Source: paper, tables 1 to 5 and appendices A.2 and D; target encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# Keys are argument names of `ijepa-ds eval`.
_SWEEP = {"lr": [0.01, 0.05, 0.001], "weight_decay": [0.0005, 0.0], "epochs": 50, "schedule": "step", "select": "test"}
_SCENES = _SWEEP | {"solver": ["sgd"], "head_batch_size": 256}
_TRANSFER = _SCENES | {"augment": True}
_CLASS_FOLDERS = "one folder a class in each of --train and --test"


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
        apart: differences from the paper.
    """

    task: str
    options: Mapping[str, Any]
    layout: str
    num_classes: int
    published: Mapping[str, float] = field(default_factory=dict)
    score: str = ""
    apart: str = ""


PRESETS: dict[str, Preset] = {
    "paper-linear": Preset(
        "linear",
        _SWEEP | {"solver": ["lars"], "head_batch_size": 16384, "augment": True},
        "ImageNet-1k: ILSVRC2012/train and ILSVRC2012/val, " + _CLASS_FOLDERS + " (n01440764 ...)",
        1000,
        {"base/16": 72.9, "large/16": 77.5, "huge/14": 79.3, "huge/16@448": 81.1},
        "linear LARS",
    ),
    "paper-1pct": Preset(
        "lowshot",
        {"tune_few": True, "l2": 0.0025},
        "ImageNet-1k as in paper-linear; --list: SimCLR's 1percent.txt, the names of 12,811 training images",
        1000,
        {"large/16": 69.4, "huge/14": 73.3, "huge/16@448": 77.3},
        "low-shot fine-tuned",
        "the paper's weight decay is 0.05 for ViT-L, 0.4 for ViT-H: --weight-decay 0.4",
    ),
    "paper-1pct-linear": Preset(
        "lowshot",
        {"l2": 0.0025},
        "as paper-1pct",
        1000,
        {"base/16": 57.1, "large/16": 64.2, "huge/14": 62.9},
        "low-shot",
        "54.2 is the paper's number for ViT-B/16 after 300 epochs, in its ablation of masks",
    ),
    "paper-finetune": Preset(
        "finetune",
        {"lr": [1e-4], "weight_decay": [0.05], "epochs": 50, "head_batch_size": 528},
        "ImageNet-1k as in paper-linear",
        1000,
        {"huge/16@448": 87.1},
        "fine-tuned",
        "the paper does not state weight decay and warm-up; here they are 0.05 and 10 %",
    ),
    "paper-cifar100": Preset(
        "linear",
        _TRANSFER | {"image_size": 224},
        "CIFAR-100 written as images: train and test, " + _CLASS_FOLDERS + "; resized to 224 pixels",
        100,
        {"base/16": 69.2, "large/16": 83.6, "huge/14": 87.5},
        "linear SGD",
    ),
    "paper-places205": Preset(
        "linear",
        _TRANSFER,
        "Places205: train and val, " + _CLASS_FOLDERS,
        205,
        {"base/16": 53.4, "large/16": 56.5, "huge/14": 58.4},
        "linear SGD",
    ),
    "paper-inat18": Preset(
        "linear",
        _TRANSFER,
        "iNaturalist 2018: train and val, one folder a category id in each (sort train_val2018 by the annotation files)",
        8142,
        {"base/16": 43.4, "large/16": 48.4, "huge/14": 47.6},
        "linear SGD",
    ),
    "paper-clevr-count": Preset(
        "count",
        _SCENES,
        "CLEVR_v1.0: --train CLEVR_v1.0/images/train --test CLEVR_v1.0/images/val (scenes in CLEVR_v1.0/scenes)",
        8,
        {"base/16": 82.2, "large/16": 85.6, "huge/14": 86.7},
        "count",
    ),
    "paper-clevr-dist": Preset(
        "distance",
        _SCENES,
        "as paper-clevr-count",
        6,
        {"base/16": 70.7, "large/16": 71.2, "huge/14": 72.4},
        "distance",
    ),
}


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
