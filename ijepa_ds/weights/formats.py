"""Content of each export format: tensors under its names, and its configuration files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

import ijepa_ds
from ijepa_ds import config
from ijepa_ds.config import paths
from ijepa_ds.model.vit import sincos_position_embedding
from ijepa_ds.weights import check
from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.names import hugging_face_names
from ijepa_ds.weights.source import Source

LABELS = {
    "context": "encoder",
    "target": "target_encoder",
    "predictor": "predictor",
}  # part -> prefix in files with several parts
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# timm's models of the published runs: (width, depth, mlp, patch, image) -> name. Other sizes override _TIMM_OTHER.
_TIMM = {
    (1280, 32, 5120, 14, 224): "vit_huge_patch14_gap_224",
    (1280, 32, 5120, 16, 448): "vit_huge_patch16_gap_448",
    (1408, 40, 6144, 16, 224): "vit_giant_patch16_gap_224",
}
_TIMM_OTHER = "vit_base_patch16_gap_224"


def encoder_tensors(source: Source, part: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Parameters and positions of an encoder under our names, read one at a time."""
    table = sincos_position_embedding(source.size.width, source.grid, source.position_grid)
    yield "pos_embed", table.to(dtype)
    for name in check.encoder_shapes(source.size, source.patch_size):
        yield name, source.parts[part][name].to(dtype)


def predictor_tensors(source: Source, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Parameters and positions of the predictor under our names, read one at a time."""
    assert source.predictor is not None
    table = sincos_position_embedding(source.predictor.width, source.grid, source.position_grid)
    yield "predictor_pos_embed", table.to(dtype)
    for name in check.predictor_shapes(source.size, source.predictor):
        yield name, source.parts["predictor"][name].to(dtype)


def part_tensors(source: Source, part: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Parameters and positions of one part."""
    return predictor_tensors(source, dtype) if part == "predictor" else encoder_tensors(source, part, dtype)


def hugging_face_tensors(source: Source, part: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """An encoder's parameters under the names of transformers' files."""
    for name, value in encoder_tensors(source, part, dtype):
        theirs = hugging_face_names(name)
        yield from zip(theirs, (piece.clone() for piece in value.chunk(len(theirs))), strict=True)


def all_tensors(source: Source, dtype: torch.dtype, parts: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors of all parts, each under its prefix."""
    for part, prefix in parts.items():
        yield from ((f"{prefix}.{name}", value) for name, value in part_tensors(source, part, dtype))


def published_checkpoint(source: Source, dtype: torch.dtype) -> dict[str, Any]:
    """A checkpoint in the published code's format, without optimiser state."""
    state: dict[str, Any] = {
        LABELS[part]: {"module." + name: value for name, value in part_tensors(source, part, dtype)} for part in LABELS
    }
    cfg = source.config
    batch, lr = (cfg.optimization.batch_size, cfg.optimization.lr) if cfg else (None, None)
    rest = {"opt": None, "scaler": None, "epoch": 0, "loss": None, "batch_size": batch, "world_size": 1, "lr": lr}
    return state | rest | {"step": source.step}


def metadata(source: Source, which: str) -> dict[str, str]:
    """Metadata of a safetensors file: the key that Hugging Face and timm expect, and ours."""
    about = {
        "format": 1,
        "version": ijepa_ds.__version__,
        "which": which,
        "step": source.step,
        "model": asdict(source.size),
        "predictor": asdict(source.predictor) if source.predictor else None,
        "patch_size": source.patch_size,
        "grid": source.grid,
        "position_grid": source.position_grid,
        "mean": source.mean,
        "std": source.std,
        "eps": source.eps,
        "source": f"{source.kind} {source.path.name}",
        "config": shown_config(source),
    }
    return {"format": "pt", "ijepa_ds": json.dumps(about)}


def shown_config(source: Source) -> str | None:
    """The run's configuration as YAML, without the machine's paths: of each path, the last name is left."""
    if source.config is None:
        return None
    sections: dict[str, Any] = {name: getattr(source.config, name) for name in ("run", "data", "model", "eval")}
    for key in (*paths.KEYS, "eval.labels"):
        section, _, name = key.partition(".")
        if path := getattr(sections[section], name):
            sections[section] = replace(sections[section], **{name: path.rstrip("/").rpartition("/")[2] or path})
    return config.to_text(replace(source.config, **sections))


def hugging_face_config(source: Source, dtype: str) -> dict[str, Any]:
    """config.json of `IJepaModel`."""
    return {
        "architectures": ["IJepaModel"],
        "model_type": "ijepa",
        "hidden_size": source.size.width,
        "num_hidden_layers": source.size.depth,
        "num_attention_heads": source.size.heads,
        "intermediate_size": source.size.mlp_hidden,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": source.eps,
        "image_size": source.grid * source.patch_size,
        "patch_size": source.patch_size,
        "num_channels": source.size.channels,
        "qkv_bias": True,
        "torch_dtype": dtype,
    }


def shorter_side(side: int) -> int:
    """Pixels of the shorter side before the central `side` pixels are cut out, as in evaluations (`data.transforms`)."""
    return round(side * 256 / 224)


def hugging_face_preprocessor(source: Source) -> dict[str, Any]:
    """preprocessor_config.json: resize the shorter side to 256/224 of the image size, centre-crop."""
    side = source.grid * source.patch_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": shorter_side(side)},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(source.mean),
        "image_std": list(source.std),
    }


def timm_model(source: Source) -> tuple[str, dict[str, Any]]:
    """The timm model name of an encoder, and the arguments of `create_model`."""
    size, side = source.size, source.grid * source.patch_size
    name = _TIMM.get((size.width, size.depth, size.mlp_hidden, source.patch_size, side))
    channels = {} if size.channels == 3 else {"in_chans": size.channels}
    if name and size.heads == 16:
        return name, channels
    ratio = size.mlp_hidden / size.width
    arguments = {
        "img_size": side,
        "patch_size": source.patch_size,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.heads,
        "mlp_ratio": ratio if int(size.width * ratio) == size.mlp_hidden else (size.mlp_hidden + 0.5) / size.width,
        "num_classes": 0,
    }
    return _TIMM_OTHER, arguments | channels


def timm_config(source: Source) -> dict[str, Any]:
    """config.json of a timm folder (`local-dir:`, or a repository of the hub)."""
    name, arguments = timm_model(source)
    side = source.grid * source.patch_size
    picture = {
        "input_size": [source.size.channels, side, side],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 224 / 256,
        "crop_mode": "center",
        "mean": list(source.mean),
        "std": list(source.std),
        "num_classes": 0,
        "pool_size": None,
        # timm before 1.0.31 takes every first convolution for one of 3 channels, and draws new weights for it
        "first_conv": "patch_embed.proj" if source.size.channels == 3 else None,
        "classifier": "head",
    }
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": source.size.width,
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": picture,
    }


def check_exportable(source: Source, format_: str, which: str) -> None:
    """Check that a format can hold the weights.

    Raises:
        WeightsError: lists all problems: missing parts, a predictor, another LayerNorm eps, encoder options.
    """
    problems = []
    if format_ == "published" and which != "all":
        problems.append(f"the published format holds both encoders and the predictor: leave out --which, not {which}")
    if format_ in ("timm", "hf") and which in ("predictor", "all"):
        problems.append(f"{format_} models are one encoder: --which target or context, not {which}")
    if which == "all" and set(source.parts) != set(LABELS):
        problems.append(f"not all parts are there (it has {', '.join(source.parts) or 'no weights yet'})")
    if which not in ("all", *source.parts):
        problems.append(f"no {which} in it (it has {', '.join(source.parts) or 'no weights yet'})")
    if format_ in ("timm", "published") and source.eps != 1e-6:
        problems.append(f"its LayerNorms have eps {source.eps:g}, {format_} models 1e-6: the outputs would differ")
    if format_ == "published" and source.predictor and source.predictor.outputs:
        wide = f"its predictor's output has {source.predictor.outputs} values (targets.layers)"
        problems.append(f"{wide}, published ones {source.size.width}: use --format safetensors")
    options = list(source.size.only_ours)
    if format_ == "published" and source.size.channels != 3:
        options.append("channels")
    if format_ in ("timm", "hf", "published") and options:
        problems.append(f"it has {', '.join(options)}, which {format_} models do not support: use --format safetensors")
    if problems:
        raise WeightsError(f"{source.path}: cannot be exported in this format: " + "; ".join(problems))
