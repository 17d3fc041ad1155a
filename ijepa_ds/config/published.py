"""Experiment files of the published code (`meta.model_name`, `mask.*`, ...), translated into our keys.

Every key must have a translation or be known to have no meaning here; notes list the latter.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ijepa_ds.config import paths, yaml_tree
from ijepa_ds.config.build import build, suggest
from ijepa_ds.config.loading import absolute, assemble, is_published, placed
from ijepa_ds.config.schema import Config, ConfigError, RunConfig
from ijepa_ds.config.yaml_tree import Item

# Their key -> ours. Batch size, folders and colour need more than one key: see `_Translation`.
_OURS = {
    "data.crop_scale": "data.crop_scale",
    "data.crop_size": "data.crop_size",
    "data.num_workers": "data.threads",
    "data.use_horizontal_flip": "data.horizontal_flip",
    "mask.allow_overlap": "masks.allow_overlap",
    "mask.aspect_ratio": "masks.target_aspect",
    "mask.enc_mask_scale": "masks.context_scale",
    "mask.min_keep": "masks.min_keep",
    "mask.num_enc_masks": "masks.num_contexts",
    "mask.num_pred_masks": "masks.num_targets",
    "mask.patch_size": "model.patch_size",
    "mask.pred_mask_scale": "masks.target_scale",
    "meta.load_checkpoint": "run.resume",
    "meta.model_name": "model.name",
    "meta.pred_depth": "model.predictor.depth",
    "meta.pred_emb_dim": "model.predictor.width",
    "meta.use_bfloat16": "model.precision",
    "optimization.warmup": "optimization.warmup_epochs",
} | {
    f"optimization.{name}": f"optimization.{name}"
    for name in ("ema", "epochs", "final_lr", "final_weight_decay", "ipe_scale", "lr", "start_lr", "weight_decay")
}
# How the value changes; other types than these pass, and are refused with ours.
_CHANGES: dict[str, Callable[[Any], Any]] = {
    "data.num_workers": lambda count: max(1, count) if isinstance(count, int) else count,
    "meta.load_checkpoint": lambda load: ("auto" if load else "never") if isinstance(load, bool) else load,
    "meta.model_name": lambda name: name.removeprefix("vit_") if isinstance(name, str) else name,
    "meta.use_bfloat16": lambda use: ("bfloat16" if use else "float32") if isinstance(use, bool) else use,
}
_WITHOUT_MEANING = {
    "data.pin_mem": "the loader chooses the memory of batches",
    "logging.write_tag": "files in run.dir have fixed names",
    "meta.copy_data": "copy the images yourself and set data.source to the copy",
}
_COLOUR = ("data.use_color_distortion", "data.use_gaussian_blur", "data.color_jitter_strength")
_OTHER = ("data.batch_size", "data.image_folder", "data.root_path", "logging.folder", "meta.read_checkpoint")
_KNOWN = (*_OURS, *_WITHOUT_MEANING, *_COLOUR, *_OTHER)


def load_any(
    path: Path, overrides: Sequence[str] = (), expand: bool = True, world_size: int | None = None
) -> tuple[Config, list[str]]:
    """Read a run with our keys or in the published format.

    Args:
        path: YAML file.
        overrides: as in `loading.load`, with OUR keys; for a published file also `published.num_gpus=N`.
        expand: expand variables and `~` in paths, and refuse placeholders (`paths.expand`); not for commands that read none.
        world_size: number of devices, to check the batch against it.

    Returns:
        The configuration; and notes: keys that are overridden twice, paths that were expanded, keys of a published file that
        have no meaning here.

    Raises:
        ConfigError: one line for each problem.
    """
    tree, found, notes = _tree(path, overrides, expand)
    return assemble(tree, found, (), world_size), notes


def peek_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The `run` section alone, with an absolute `run.dir`; contradictions between keys are not checked: that loads PyTorch.

    Raises:
        ConfigError: one line for each key that is unknown, missing, or of a wrong type or range, in any section.
    """
    tree, lines, _ = _tree(path, overrides, expand=True)
    cfg, wrong = build(yaml_tree.plain(tree))
    if lines or wrong:
        raise ConfigError([*lines, *placed(tree, wrong)])
    return replace(cfg.run, dir=absolute(cfg.run.dir))


def peek_source(path: Path, overrides: Sequence[str] = ()) -> str | None:
    """`data.source` of a file that may have problems elsewhere, absolute; None if it is missing or cannot be expanded."""
    try:
        tree, lines, _ = _tree(path, overrides, expand=True)
    except ConfigError:
        return None
    source = yaml_tree.plain(tree).get("data")
    source = source.get("source") if isinstance(source, dict) else None
    return absolute(source) if isinstance(source, str) and not any(": data.source:" in line for line in lines) else None


def _tree(path: Path, overrides: Sequence[str], expand: bool) -> tuple[Item, list[str], list[str]]:
    """A file and the overrides as a tree of our keys, problems, and notes."""
    tree, found = yaml_tree.read(path)
    ours, notes = list(overrides), yaml_tree.repeated(overrides)
    if is_published(tree):
        ours = [text for text in overrides if not text.startswith("published.")]
        theirs = Item({}, str(path))
        found += yaml_tree.apply_overrides(theirs, [text for text in overrides if text.startswith("published.")])
        made = _Translation(
            tree, (theirs.value.get("published") or theirs).section or {}, {text.partition("=")[0].strip() for text in ours}
        )
        tree, notes = made.tree, [*notes, *made.notes]
        found += made.problems
    found += yaml_tree.apply_overrides(tree, ours)
    if expand:
        expanded, wrong = paths.expand_keys(tree, os.environ)
        notes, found = [*expanded, *notes], [*found, *wrong]
    return tree, found, notes


@dataclass
class _Translation:
    """A published tree as a tree of our keys; values keep the place at which they are written."""

    root: Item  # the published file
    extra: dict[str, Item]  # the overrides `published.*`
    overridden: Collection[str]  # our keys on the command line: the file need not have them
    tree: Item = field(init=False)
    notes: list[str] = field(default_factory=list)  # on keys without meaning here
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tree, self.flat = Item({}, self.root.where), dict[str, Item]()
        for name, item in self.root.value.items():
            if item.section is None:
                self.refuse(item, f"{name}: expected a section with keys")
            self.flat |= {f"{name}.{key}": inner for key, inner in (item.section or {}).items()}
        for key, item in self.flat.items():
            if key in _WITHOUT_MEANING:
                self.notes.append(f"{key}: no meaning here ({_WITHOUT_MEANING[key]})")
            elif key not in _KNOWN:
                self.refuse(item, f"{key}: unknown key of the published format{suggest(key, _KNOWN)}")
        for key, ours in _OURS.items():
            if key in self.flat:
                self.put(ours, _CHANGES.get(key, lambda value: value)(self.flat[key].value), self.flat[key])
            elif ours not in self.overridden:
                self.refuse(None, f"{key}: missing in this published file; add it, or override {ours}=...")
        self.put("masks.sampler", "published", self.root)
        self.colour()
        self.batch()
        self.folders()
        text = "the published code saves once an epoch, this one every run.checkpoint_every steps (default 1000)"
        self.notes.append(f"checkpoints: {text}")

    def refuse(self, item: Item | None, text: str) -> None:
        """Add a problem at the place of `item`, or of the file."""
        self.problems.append(f"{(item or self.root).where}: {text}")

    def put(self, key: str, value: Any, origin: Item) -> None:
        """Set one of our keys."""
        *sections, name = key.split(".")
        item = self.tree
        for section in sections:
            item = item.value.setdefault(section, Item({}, origin.where.rpartition(":")[0] or origin.where))
        item.value[name] = Item(value, origin.where)

    def colour(self) -> None:
        """Their colour distortion: jitter of 80 % of the crops, gray for 20 %; their blur: half of them."""
        distort, blur, strength = (self.flat.get(key) for key in _COLOUR)
        before = len(self.problems)
        for key, item in zip(_COLOUR, (distort, blur), strict=False):
            if item and not isinstance(item.value, bool):
                self.refuse(item, f"{key}: expected true or false, found {item.value!r}")
        if strength and (isinstance(strength.value, bool) or not isinstance(strength.value, int | float)):
            self.refuse(strength, f"{_COLOUR[2]}: expected a number, found {strength.value!r}")
        if len(self.problems) > before:
            return
        if distort and distort.value:
            by = float(strength.value) if strength else 1.0
            self.put("data.color_jitter", [round(by * part, 9) for part in (0.8, 0.8, 0.8, 0.2)], distort)
            self.put("data.grayscale", 0.2, distort)
        elif strength:
            self.notes.append(f"{_COLOUR[2]}: no meaning here (use_color_distortion is off)")
        if blur and blur.value:
            self.put("data.blur", 0.5, blur)

    def batch(self) -> None:
        """Their batch size is per GPU, and also the group of images whose masks are cut together."""
        gpus, batch = self.extra.get("num_gpus"), self.flat.get("data.batch_size")
        for name, item in self.extra.items():
            if name != "num_gpus":
                self.refuse(item, "unknown key; did you mean 'published.num_gpus'?")
        if gpus is None:
            text = "is per GPU in the published format, which does not say how many GPUs there were"
            self.refuse(batch, f"data.batch_size: {text}; add published.num_gpus=16 (the runs used 16, 64 or 128)")
        elif not _is_count(gpus.value):
            self.refuse(gpus, f"expected a whole number of GPUs, found {gpus.value!r}")
        if batch is None or not _is_count(batch.value):
            found = repr(batch.value) if batch else "nothing"
            self.refuse(batch, f"data.batch_size: expected a whole number of images per GPU, found {found}")
        # Placeholders keep the remaining checks going when one of the two is missing, which is reported already.
        per_gpu = batch if batch and _is_count(batch.value) else Item(1, self.root.where)
        count = gpus.value if gpus and _is_count(gpus.value) else 1
        self.put("optimization.batch_size", per_gpu.value * count, per_gpu)
        self.put("optimization.max_micro_batch", per_gpu.value, per_gpu)
        self.put("masks.truncation_group", per_gpu.value, per_gpu)

    def folders(self) -> None:
        """The images, the folder of the run, and its start."""
        root, folder, logs, start = (
            self.flat.get(f) for f in ("data.root_path", "data.image_folder", "logging.folder", _OTHER[4])
        )
        if "data.source" not in self.overridden:
            if root and folder and isinstance(root.value, str) and isinstance(folder.value, str):
                source = posixpath.join(root.value, folder.value, "train")
                self.put("data.source", source, root)
                self.notes.append(f"data.source: {source} (root_path, image_folder and the train folder their loader adds)")
            else:
                self.refuse(None, "data.root_path and data.image_folder: give both, or override data.source=...")
        if logs is not None:
            self.put("run.dir", logs.value, logs)
        elif "run.dir" not in self.overridden:
            self.refuse(None, "logging.folder: missing; add it, or override run.dir=...")
        if start is not None and start.value is not None and "run.resume" not in self.overridden:
            text = "the optimiser's state of a published checkpoint cannot be resumed here"
            self.refuse(start, f"{_OTHER[4]}: {text}; set it to null, and start from its weights with model.init_from=FILE")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
