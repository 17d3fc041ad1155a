"""What the `config.json` of a timm folder says about its network. The file is data: it names no path, no URL and no code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.source import Description

_FAMILY = "vision_transformer"  # timm's module of plain ViTs; other families are no I-JEPA encoders
_LARGEST = 1 << 16  # of any number in the arguments


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _is_side(value: object) -> bool:
    return _is_count(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))


def _is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LARGEST


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _is_pooling(value: object) -> bool:
    return value in ("", "avg", "token")


# The arguments of `timm.create_model` that describe a plain ViT. None of them is a path, a URL or the name of a class.
_ALLOWED: Mapping[str, Callable[[object], bool]] = {
    **dict.fromkeys(("img_size", "patch_size"), _is_side),
    **dict.fromkeys(("embed_dim", "depth", "num_heads", "num_classes", "in_chans", "reg_tokens"), _is_count),
    **dict.fromkeys(("mlp_ratio", "init_values", "drop_rate", "pos_drop_rate", "patch_drop_rate"), _is_rate),
    **dict.fromkeys(("proj_drop_rate", "attn_drop_rate", "drop_path_rate"), _is_rate),
    **dict.fromkeys(
        ("qkv_bias", "proj_bias", "qk_norm", "class_token", "no_embed_class", "pre_norm", "final_norm"), _is_switch
    ),
    **dict.fromkeys(("fc_norm", "pool_include_prefix", "dynamic_img_size", "dynamic_img_pad"), _is_switch),
    "global_pool": _is_pooling,
}


def describe(folder: Path, described: Mapping[str, Any]) -> Description:
    """Metadata of a timm folder. The number of heads and the LayerNorm epsilon are those of timm's network.

    Args:
        folder: with `config.json`.
        described: its content.

    Raises:
        WeightsError: names every entry of `config.json` that is not a plain ViT of timm's registry.
    """
    where = folder / "config.json"
    name, arguments = described["architecture"], described.get("model_args") or {}
    if problems := [*_problems(name, arguments)]:
        raise WeightsError(f"{where}: " + "; ".join(problems))
    network = _build(where, name.split(".")[0], arguments)
    block = network.blocks[0]
    if not isinstance(getattr(block, "mlp", None), nn.Module) or not isinstance(network.norm, nn.LayerNorm):
        raise WeightsError(
            f"{where}: not supported: {name!r} has other blocks than a plain ViT, or no LayerNorm behind the last one "
            "(model_args.global_pool and final_norm)"
        )
    act = block.mlp.act
    if not isinstance(act, nn.GELU) or act.approximate != "none":
        raise WeightsError(f"{where}: not supported: {name!r} has the activation {act}; I-JEPA's encoders have GELU")
    picture = described.get("pretrained_cfg") or {}
    mean, std = (_channels(where, picture, key, arguments.get("in_chans", 3)) for key in ("mean", "std"))
    return Description(kind="timm", heads=block.attn.num_heads, mean=mean, std=std, eps=network.norm.eps)


def _problems(name: object, arguments: object) -> list[str]:
    from timm.models import is_model_in_modules

    problems = []
    # Not in the registry: `hf-hub:NAME` and `local-dir:PATH`, with which timm opens a repository or a folder.
    if not isinstance(name, str) or not is_model_in_modules(name, [_FAMILY]):
        problems.append(f"architecture is {str(name)[:80]!r}: expected the name of a ViT in timm's registry (timm.list_models)")
    if not isinstance(arguments, dict):
        return [*problems, f"model_args is a {type(arguments).__name__}: expected a JSON object"]
    for key, value in arguments.items():
        if key not in _ALLOWED:
            problems.append(f"model_args.{key}: not an argument that describes a plain ViT ({', '.join(sorted(_ALLOWED))})")
        elif value is not None and not _ALLOWED[key](value):
            problems.append(f"model_args.{key}: {str(value)[:80]!r} is not a value of it")
    return problems


def _build(where: Path, name: str, arguments: Mapping[str, Any]) -> Any:
    import timm

    try:
        with torch.device("meta"):  # one block shows the heads
            return timm.create_model(name, pretrained=False, **{**arguments, "depth": 1})
    except Exception as error:  # bad numbers may fail anywhere in timm
        raise WeightsError(f"{where}: timm cannot build {name!r} with {dict(arguments)}: {error}") from error


def _channels(where: Path, picture: object, key: str, count: int) -> tuple[float, ...] | None:
    """Mean or deviation of the channels; None: the file does not say."""
    value = picture.get(key) if isinstance(picture, dict) else None
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != count or not all(map(_is_rate, value)):
        raise WeightsError(f"{where}: pretrained_cfg.{key} is {str(value)[:80]!r}: expected {count} numbers")
    return tuple(map(float, value))
