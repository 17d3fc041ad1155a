"""Experiment files of the published code (`meta.model_name`, `mask.*`, ...), translated into our schema.

Every key must be there or be known to mean nothing here; nothing is dropped without a note.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ijepa_ds.config import yaml_tree
from ijepa_ds.config.build import build, suggest
from ijepa_ds.config.loading import absolute, assemble, is_published, placed
from ijepa_ds.config.schema import Config, ConfigError, RunConfig
from ijepa_ds.config.yaml_tree import Item

_GPUS = "published.num_gpus"


def _same(value: Any) -> Any:
    return value


# Their key -> (our key, how the value changes). Batch size and folders need more than one key: see translate.
_SAME: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "data.crop_scale": ("data.crop_scale", _same),
    "data.crop_size": ("data.crop_size", _same),
    "data.num_workers": ("data.threads", lambda count: max(1, count) if isinstance(count, int) else count),
    "data.use_horizontal_flip": ("data.horizontal_flip", _same),
    "mask.allow_overlap": ("masks.allow_overlap", _same),
    "mask.aspect_ratio": ("masks.target_aspect", _same),
    "mask.enc_mask_scale": ("masks.context_scale", _same),
    "mask.min_keep": ("masks.min_keep", _same),
    "mask.num_enc_masks": ("masks.num_contexts", _same),
    "mask.num_pred_masks": ("masks.num_targets", _same),
    "mask.patch_size": ("model.patch_size", _same),
    "mask.pred_mask_scale": ("masks.target_scale", _same),
    "meta.load_checkpoint": ("run.resume", lambda load: {True: "auto", False: "never"}.get(load, load)),
    "meta.model_name": (
        "model.name",
        lambda name: name.removeprefix("vit_") if isinstance(name, str) else name,
    ),
    "meta.pred_depth": ("model.predictor.depth", _same),
    "meta.pred_emb_dim": ("model.predictor.width", _same),
    "meta.use_bfloat16": ("model.precision", lambda use: {True: "bfloat16", False: "float32"}.get(use, use)),
    "optimization.ema": ("optimization.ema", _same),
    "optimization.epochs": ("optimization.epochs", _same),
    "optimization.final_lr": ("optimization.final_lr", _same),
    "optimization.final_weight_decay": ("optimization.final_weight_decay", _same),
    "optimization.ipe_scale": ("optimization.ipe_scale", _same),
    "optimization.lr": ("optimization.lr", _same),
    "optimization.start_lr": ("optimization.start_lr", _same),
    "optimization.warmup": ("optimization.warmup_epochs", _same),
    "optimization.weight_decay": ("optimization.weight_decay", _same),
}
_WITHOUT_MEANING = {
    "data.pin_mem": "the loader decides where batches lie",
    "logging.write_tag": "files in run.dir have fixed names",
    "meta.copy_data": "copy the images yourself and point data.source at the copy",
}
_COLOUR = ("data.use_color_distortion", "data.use_gaussian_blur", "data.color_jitter_strength")
_BUILT = ("data.batch_size", "data.image_folder", "data.root_path", "logging.folder", "meta.read_checkpoint")
_KNOWN = {*_SAME, *_WITHOUT_MEANING, *_COLOUR, *_BUILT}


def load_any(path: Path, overrides: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """Read a run in our schema or in the published format.

    Args:
        path: YAML file.
        overrides: as in `config_load.load`, OUR keys; for a published file `published.num_gpus=N`.

    Returns:
        The configuration, and notes on what a published file says that means nothing here.

    Raises:
        ConfigError: one line a problem.
    """
    tree, found, ours, notes = _tree(path, overrides)
    return assemble(tree, found, ours), notes


def peek_run(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The `run` section alone, with an absolute `run.dir`; values are not checked, which would load PyTorch.

    Raises:
        ConfigError: keys that are unknown or missing anywhere, values of the wrong type.
    """
    tree, found, ours, _ = _tree(path, overrides)
    lines = [*found, *yaml_tree.apply_overrides(tree, ours)]
    cfg, wrong = build(yaml_tree.plain(tree))
    if lines or wrong:
        raise ConfigError([*lines, *placed(tree, wrong)])
    return replace(cfg.run, dir=absolute(cfg.run.dir))


def _tree(path: Path, overrides: Sequence[str]) -> tuple[Item, list[str], list[str], list[str]]:
    """A file as a tree of our schema, problems, the overrides that are still to be applied, and notes."""
    root, found = yaml_tree.read(path)
    if not is_published(root):
        return root, found, list(overrides), []
    ours = [text for text in overrides if not text.startswith("published.")]
    theirs = Item({}, str(path))
    found += yaml_tree.apply_overrides(theirs, [text for text in overrides if text.startswith("published.")])
    tree, notes, more = translate(root, theirs, {text.partition("=")[0].strip() for text in ours})
    return tree, [*found, *more], ours, notes


def translate(root: Item, extra: Item, overridden: set[str]) -> tuple[Item, list[str], list[str]]:
    """A published tree as a tree of our schema, values keeping the place they were written at.

    Args:
        root: the published file.
        extra: the tree of `published.*` overrides.
        overridden: our keys that the command line gives, for which the file need not provide.

    Returns:
        The tree, notes on keys without meaning here, problems.
    """
    flat, problems = _flatten(root)
    tree = Item({}, root.where)
    notes = [f"{key}: no meaning here ({why})" for key, why in _WITHOUT_MEANING.items() if key in flat]
    for key in flat:
        if key not in _KNOWN:
            problems.append(f"{flat[key].where}: {key}: unknown key of the published format{suggest(key, _KNOWN)}")
    for key, (ours, change) in _SAME.items():
        if key in flat:
            value = flat[key].value
            _put(tree, ours, change(value) if not isinstance(value, (list, dict)) else value, flat[key])
        elif ours not in overridden:
            problems.append(f"{root.where}: {key}: missing in this published file; add it, or override {ours}=...")
    problems += _colour(flat, tree, notes)
    _put(tree, "masks.sampler", "published", root)
    problems += _batch(flat, extra, tree, root.where)
    problems += _folders(flat, tree, overridden, root.where, notes)
    notes.append(
        "checkpoints: the published code saves once an epoch, here every run.checkpoint_every steps (1000 unless overridden)"
    )
    return tree, notes, problems


def _colour(flat: dict[str, Item], tree: Item, notes: list[str]) -> list[str]:
    """Their colour distortion: jitter of 80 % of the crops, gray for 20 %; their blur: half of them."""
    distort, blur, strength = (flat.get(key) for key in _COLOUR)
    problems = [
        f"{item.where}: {key}: expected true or false, found {item.value!r}"
        for key, item in zip(_COLOUR, (distort, blur), strict=False)
        if item and not isinstance(item.value, bool)
    ]
    if strength and (isinstance(strength.value, bool) or not isinstance(strength.value, int | float)):
        problems.append(f"{strength.where}: {_COLOUR[2]}: expected a number, found {strength.value!r}")
    if problems:
        return problems
    if distort and distort.value:
        by = float(strength.value) if strength else 1.0
        jitter = [round(by * part, 9) for part in (0.8, 0.8, 0.8, 0.2)]
        _put(tree, "data.color_jitter", jitter, distort)
        _put(tree, "data.grayscale", 0.2, distort)
    elif strength:
        notes.append(f"{_COLOUR[2]}: no meaning here (use_color_distortion is off)")
    if blur and blur.value:
        _put(tree, "data.blur", 0.5, blur)
    return []


def _flatten(root: Item) -> tuple[dict[str, Item], list[str]]:
    """`section.key` -> item; every top-level entry must be a section."""
    flat: dict[str, Item] = {}
    problems = []
    for name, item in root.value.items():
        if item.section is None:
            problems.append(f"{item.where}: {name}: expected a section with keys")
        flat |= {f"{name}.{key}": inner for key, inner in (item.section or {}).items()}
    return flat, problems


def _put(tree: Item, key: str, value: Any, origin: Item) -> None:
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.value.setdefault(section, Item({}, origin.where.rpartition(":")[0] or origin.where))
    tree.value[name] = Item(value, origin.where)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _batch(flat: dict[str, Item], extra: Item, tree: Item, label: str) -> list[str]:
    """Their batch size is per GPU, and also the group of images whose masks are cut together."""
    problems = []
    entries = (extra.value.get("published") or Item({}, label)).section or {}
    for name in entries:
        if name != "num_gpus":
            problems.append(f"{entries[name].where}: unknown key; did you mean '{_GPUS}'?")
    gpus, batch = entries.get("num_gpus"), flat.get("data.batch_size")
    if gpus is None:
        problems.append(
            f"{batch.where if batch else label}: data.batch_size: is per GPU in the published format and the "
            f"file does not say how many GPUs there were; add {_GPUS}=16 (the runs used 16, 64 or 128)"
        )
    elif not _is_count(gpus.value):
        problems.append(f"{gpus.where}: expected a whole number of GPUs, found {gpus.value!r}")
    if batch is None or not _is_count(batch.value):
        where, found = (batch.where, repr(batch.value)) if batch else (label, "nothing")
        problems.append(f"{where}: data.batch_size: expected a whole number of images a GPU, found {found}")
        batch = None
    # Placeholders keep the remaining checks going when one of the two is missing; that is noted already.
    per_gpu = batch or Item(1, label)
    count = gpus.value if gpus and _is_count(gpus.value) else 1
    _put(tree, "optimization.batch_size", per_gpu.value * count, per_gpu)
    _put(tree, "optimization.max_micro_batch", per_gpu.value, per_gpu)
    _put(tree, "masks.truncation_group", per_gpu.value, per_gpu)
    return problems


def _folders(flat: dict[str, Item], tree: Item, overridden: set[str], label: str, notes: list[str]) -> list[str]:
    """Where the images are, where the run goes, and what it starts from."""
    problems = []
    parts = [flat.get("data.root_path"), flat.get("data.image_folder")]
    if "data.source" not in overridden:
        if all(part is not None and isinstance(part.value, str) for part in parts):
            source = posixpath.join(*(part.value for part in parts if part), "train")
            _put(tree, "data.source", source, parts[0] or Item(None, label))
            notes.append(f"data.source: {source} (root_path, image_folder and the train folder their loader adds)")
        else:
            problems.append(f"{label}: data.root_path and data.image_folder: give both, or override data.source=...")
    folder = flat.get("logging.folder")
    if folder is not None:
        _put(tree, "run.dir", folder.value, folder)
    elif "run.dir" not in overridden:
        problems.append(f"{label}: logging.folder: missing; add it, or override run.dir=...")
    start = flat.get("meta.read_checkpoint")
    if start is not None and start.value is not None and "run.resume" not in overridden:
        problems.append(
            f"{start.where}: meta.read_checkpoint: the optimiser's state of a published checkpoint is not continued here; "
            "set it to null, and start from its weights with model.init_from=FILE if wanted"
        )
    return problems
