"""Detects the format of a path and opens it: runs, exports, published checkpoints, timm, Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ijepa_ds import config
from ijepa_ds.checkpoint.folder import folder_name, list_steps
from ijepa_ds.checkpoint.reader import CheckpointReader, newest
from ijepa_ds.config import ConfigError
from ijepa_ds.config.sizes import Size, size_of
from ijepa_ds.weights import check, files, timm_folder
from ijepa_ds.weights.check import PredictorSize
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.lazy import LazyTensors, prefixed
from ijepa_ds.weights.names import from_hugging_face
from ijepa_ds.weights.source import Description, Source, assemble
from ijepa_ds.weights.unwrap import UNLABELLED, find_parts

METADATA = "ijepa_ds"  # our entry in a safetensors file's metadata
WEIGHTS = "model.safetensors"  # in every folder that is exported
_LABELS = {"encoder": "context", "target_encoder": "target", "predictor": "predictor"}  # in published files, in ours
_METADATA_KEYS = {"which", "step", "model", "predictor", "patch_size", "grid", "position_grid", "mean", "std", "eps", "config"}


def open_source(
    path: str | Path, heads: int | None = None, step: int | None = None, weights: bool = True, verify: bool = True
) -> Source:
    """Detect the format of a path, check it and open it.

    Args:
        path: a run directory, a checkpoint folder, a folder or file exported here, a published checkpoint, a timm file or
            folder, or a Hugging Face folder.
        heads: attention heads, where the file does not say and the size is not in `config.sizes.SIZES`.
        step: checkpoint of a run; None: the newest valid one.
        weights: False: read only a run's model size; it may have no checkpoint yet.
        verify: verify the checksums of a checkpoint folder.

    Raises:
        WeightsError: the format is not known or the file does not match it; the message says what was found.
        CheckpointError: a run without a usable checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "manifest.json").is_file() or (path / "config.yaml").is_file():
            source = _open_run(path, step, weights, verify)
        elif (path / "config.json").is_file():
            source = _open_described_folder(path, heads)
        elif (path / WEIGHTS).is_file():
            source = _open_file(path / WEIGHTS, heads)
        else:
            names = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise WeightsError(
                f"{path}: neither a run directory (no config.yaml), a checkpoint folder (no manifest.json), nor a folder of "
                f"weights (no config.json, no {WEIGHTS}); it contains {names}"
            )
    elif path.is_file():
        source = _open_file(path, heads)
    else:
        raise WeightsError(f"{path}: no such file or folder")
    if step is not None and source.kind != "run":
        raise WeightsError(f"{path}: has no checkpoints to choose step {step} from (it is {source.kind})")
    return source


def _checkpoint_part(reader: CheckpointReader, kind: str, prefix: str, shapes: dict[str, torch.Size]) -> LazyTensors:
    """A part of a checkpoint; each parameter is joined from its slices when it is read."""

    def read(name: str) -> Tensor:
        return reader.read(kind, prefix + name).view(shapes[name])

    return LazyTensors({name: partial(read, name) for name in shapes})


def _open_run(path: Path, step: int | None, weights: bool, verify: bool) -> Source:
    reader: CheckpointReader | None = None
    if (path / "manifest.json").is_file():
        run_dir, reader = path.parent.parent, CheckpointReader(path, verify)
        if step not in (None, reader.manifest["step"]):
            raise WeightsError(f"{path}: is the checkpoint of step {reader.manifest['step']}, not {step}")
    else:
        run_dir = path
        if step is not None:
            if step not in list_steps(path):
                raise WeightsError(f"{path}: no checkpoint of step {step}; there are {list_steps(path) or 'none'}")
            reader = CheckpointReader(path / "checkpoints" / folder_name(step))
        elif weights:
            reader = newest(path)
    if not (run_dir / "config.yaml").is_file():
        raise WeightsError(f"{path}: neither a run directory (no config.yaml in it) nor a checkpoint folder of one")
    cfg = config.stored(run_dir / "config.yaml")
    size, heads = size_of(cfg.model), cfg.model.predictor.heads
    outputs = cfg.targets.width(size.width)
    wider = None if outputs == size.width else outputs
    predictor = PredictorSize(cfg.model.predictor.width, cfg.model.predictor.depth, heads or size.heads, wider)
    parts: dict[str, Mapping[str, Tensor]] = {}
    if reader:
        shapes = check.encoder_shapes(size, cfg.model.patch_size)
        parts["context"] = _checkpoint_part(reader, "master", "encoder.", shapes)
        parts["target"] = _checkpoint_part(reader, "ema", "encoder.", shapes)
        parts["predictor"] = _checkpoint_part(reader, "master", "predictor.", check.predictor_shapes(size, predictor))
    return Source(
        path=reader.folder if reader else run_dir,
        kind="run",
        parts=parts,
        size=size,
        patch_size=cfg.model.patch_size,
        grid=cfg.grid,
        position_grid=cfg.model.position_grid or cfg.grid,
        predictor=predictor,
        mean=cfg.data.mean,
        std=cfg.data.std,
        step=reader.manifest["step"] if reader else 0,
        config=cfg,
    )


def _open_file(path: Path, heads: int | None) -> Source:
    if files.check_type(path) == files.SAFETENSORS:
        tensors, metadata = files.open_safetensors([path])
        if METADATA in metadata:
            return _open_export(path, tensors, metadata[METADATA])
        beside = path.parent / "config.json"
        if path.name == WEIGHTS and beside.is_file() and not any("patch_embed.proj" in name for name in tensors):
            return _open_described_folder(path.parent, heads)
        return _assemble_found(path, tensors, heads)
    content = files.load_torch(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a dictionary of weights, found a {type(content).__name__}")
    return _assemble_found(path, content, heads)


def _assemble_found(path: Path, content: Mapping[str, Any], heads: int | None) -> Source:
    parts = find_parts(content, str(path))
    kind = "timm" if UNLABELLED in parts else "published"
    return assemble(path, parts, Description(kind=kind, heads=heads))


def _open_export(path: Path, tensors: LazyTensors, metadata: str) -> Source:
    about = _read_metadata(path, metadata)
    which, notes = about["which"], []
    if which == "all":
        parts: dict[str, Mapping[str, Tensor]] = {label: prefixed(tensors, key + ".") for key, label in _LABELS.items()}
    else:
        inner: Mapping[str, Tensor] = tensors
        if "patch_embed.proj.weight" not in tensors and which != "predictor":
            inner, _ = from_hugging_face(tensors)
        parts = {which: inner}
    cfg = None
    if about["config"]:
        try:
            cfg = config.from_text(about["config"], str(path))
        except ConfigError as error:
            notes.append(f"the configuration in the file is not this version's ({error.problems[0]})")
    model, predictor = about["model"], about["predictor"]
    return assemble(
        path,
        parts,
        Description(
            kind="export",
            heads=model["heads"],
            predictor_heads=predictor["heads"] if predictor else None,
            mean=about["mean"],
            std=about["std"],
            eps=about["eps"],
            step=about["step"],
            config=cfg,
            notes=notes,
        ),
        known=(Size(**model), about["patch_size"], about["grid"], about["position_grid"]),
    )


def _read_metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
        missing = _METADATA_KEYS - about.keys()
    except (ValueError, AttributeError) as error:
        raise WeightsError(f"{path}: its ijepa_ds metadata are damaged ({error})") from error
    if about.get("format") != 1 or missing:
        raise WeightsError(f"{path}: exported by another version of ijepa_ds (unknown metadata format)")
    return about


def _open_described_folder(folder: Path, heads: int | None) -> Source:
    """Open a Hugging Face or timm folder: weights, and a config.json that describes them."""
    described = files.read_json(folder / "config.json")
    state, metadata = _weights_in(folder)
    if METADATA in metadata:
        return _open_export(folder, state, metadata[METADATA])
    if "architecture" in described:
        return assemble(folder, find_parts(state, str(folder)), timm_folder.describe(folder, described))
    if described.get("model_type") != "ijepa":
        raise WeightsError(
            f"{folder / 'config.json'}: model_type is {described.get('model_type')!r}; expected 'ijepa' (Hugging Face), or an "
            "architecture (timm)"
        )
    wrong = [
        f"{key} is {described.get(key, default)!r}"
        for key, default in (("qkv_bias", True), ("hidden_act", "gelu"))
        if described.get(key, default) != default
    ]
    if wrong:
        raise WeightsError(f"{folder / 'config.json'}: not supported: {', '.join(wrong)}")
    picture = files.read_json(p) if (p := folder / "preprocessor_config.json").is_file() else {}
    theirs, rest = from_hugging_face(state)
    strange = [n for n in rest if not n.startswith(("pooler.", "classifier.", "embeddings.mask_token"))]
    if strange:
        raise WeightsError(f"{folder}: not part of an I-JEPA encoder: {', '.join(strange[:6])}")
    notes = [f"left out: {', '.join(rest)}"] if rest else []
    return assemble(
        folder,
        {"unlabelled": theirs},
        Description(
            kind="hugging face",
            heads=described.get("num_attention_heads", 12),
            mean=picture.get("image_mean"),
            std=picture.get("image_std"),
            eps=described.get("layer_norm_eps", 1e-12),
            notes=notes,
        ),
    )


def _weights_in(folder: Path) -> tuple[LazyTensors, dict[str, str]]:
    """Tensors and metadata of a folder (safetensors or PyTorch, in one or several files)."""
    for name in (WEIGHTS, "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            found = [folder / name]
        elif index.is_file():
            listed = files.read_json(index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(part, str) for part in listed.values()):
                raise WeightsError(f"{index}: no weight_map that names a file for each tensor")
            names = sorted(set(listed.values()))
            found = [folder / Path(part).name for part in names]  # only the name: the path must stay inside the folder
        else:
            continue
        if name == WEIGHTS:
            return files.open_safetensors(found)
        contents = {part: files.load_torch(part) for part in found}
        for part, content in contents.items():
            if not isinstance(content, dict):
                raise WeightsError(f"{part}: expected a dictionary of weights, found a {type(content).__name__}")
        return prefixed({key: value for content in contents.values() for key, value in content.items()}, ""), {}
    raise WeightsError(f"{folder}: has a config.json but no weights ({WEIGHTS} or pytorch_model.bin)")
