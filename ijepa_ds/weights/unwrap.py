"""Finds the networks in a file of any training code: takes wrappers off the names, and tells encoders and predictor apart.

Wrappers are modules that put a word into every name (`module.` of DDP, `_orig_mod.` of torch.compile, those of FSDP,
`model.`) and dictionaries around the weights (`state_dict` of Lightning). They come in any order and depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ijepa_ds.weights.facts import WeightsError
from ijepa_ds.weights.lazy import LazyTensors

UNLABELLED = "unlabelled"
# `encoder` says little where nothing else is named; then the file holds one encoder without saying which.
_LABELS = {
    **dict.fromkeys(("target_encoder", "teacher", "ema_encoder", "encoder_ema", "target"), "target"),
    **dict.fromkeys(("encoder", "context_encoder", "student"), "context"),
    "predictor": "predictor",
}
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # beside other weights: these alone are meant
_ANYWHERE = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module"}
_LEADING = {
    "state_dict",
    "model_state_dict",
    "model",
    "models",
    "net",
    "network",
    "backbone",
    "ijepa",
    "jepa",
    "weights",
    *_EMA,
}
_NOT_WEIGHTS = {"opt", "optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "scaler", "lr_scheduler", "loops"}
# Where the names of a network begin; below them no word is a wrapper.
_CORE = re.compile(
    r"(patch_embed|pos_embed|cls_token|reg_token|register_tokens|mask_token|blocks|norm|fc_norm|norm_pre|head|embeddings|layernorm"
    r"|pooler|layers|encoder\.layers?\.|predictor_\w+|rope|registers)(\.|$|(?<=\.))"
)
_FAMILIES = (
    ("a ResNet", r"(^|\.)layer[1-4]\.\d+\.conv\d"),
    ("a ConvNeXt", r"(^|\.)stages\.\d+\.(blocks\.)?\d+\.(conv_dw|dwconv)"),
    ("a Swin transformer", r"relative_position_bias_table"),
    ("a CLIP model", r"(^|\.)(visual\.|vision_model\.|text_model\.|transformer\.resblocks\.|logit_scale)"),
    ("a masked autoencoder (MAE)", r"(^|\.)decoder_(blocks|embed|pred)"),
    ("a ViT of torchvision", r"encoder_layer_\d+|(^|\.)conv_proj\."),
    ("a DINOv2 model", r"\.ls1\.gamma$|register_tokens"),
    ("a BERT-like text model", r"word_embeddings|token_type_embeddings"),
    (
        "a ViT of Hugging Face in one file; open its folder with config.json",
        r"(^|\.)encoder\.layers?\.\d+\.(attention|layernorm)",
    ),
    ("adapters (LoRA)", r"\.lora_[AB]\."),
    ("a ViT with a class token", r"(^|\.)cls_token$"),
)


def find_parts(content: Mapping[str, Any], where: str) -> dict[str, Mapping[str, Tensor]]:
    """The networks in the content of a file.

    Args:
        content: dictionaries of tensors, nested in any way; what is no tensor is passed over.
        where: the file, for messages.

    Returns:
        Tensors under our names by part: context, target and predictor, or `UNLABELLED`.

    Raises:
        WeightsError: there are no tensors, or two names mean the same parameter.
    """
    empty = [key for key in _LABELS if isinstance(content.get(key), Mapping) and not content[key]]
    if empty:
        raise WeightsError(f"{where}: not a ViT encoder: its {empty[0]} is empty")
    found: dict[str, dict[str, tuple[Mapping[str, Any], str, str]]] = {}
    for holder, key, name in _tensors(_without_rest(content)):
        part, plain = _split(name)
        other = found.setdefault(part, {}).get(plain)
        if other and other[2] != name:
            raise WeightsError(f"{where}: {other[2]} and {name} are both {plain} of one network: save only one of them")
        found[part][plain] = (holder, key, name)
    if not found:
        raise WeightsError(
            f"{where}: there are no tensors in it (it has {', '.join(map(str, list(content)[:8])) or 'nothing'})"
        )
    parts: dict[str, Mapping[str, Tensor]] = {
        part: LazyTensors({plain: partial(holder.__getitem__, key) for plain, (holder, key, _) in found[part].items()})
        for part in sorted(found, key=("context", "target", "predictor", UNLABELLED).index)
    }
    if set(parts) == {"context"} and not isinstance(content.get("encoder"), Mapping):
        return {UNLABELLED: parts["context"]}
    if len(parts) > 1 and {"context", "target"} & parts.keys():
        parts.pop(UNLABELLED, None)  # heads, losses and probes beside them
    return parts


def _without_rest(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Weights of a moving average where a file has them beside others (timm's order), else everything."""
    if not any(isinstance(content.get(key), Mapping) for key in _LABELS):
        for key in _EMA:
            if isinstance(content.get(key), Mapping):
                return content[key]
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                return content[key]
    return {key: value for key, value in content.items() if key not in _NOT_WEIGHTS}


def _tensors(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[Mapping[str, Any], str, str]]:
    """(dictionary, key, dotted name) of every tensor; lazily read dictionaries are not read."""
    if isinstance(content, LazyTensors):
        yield from ((content, name, prefix + name) for name in content)
        return
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            yield content, key, prefix + key
        elif isinstance(key, str) and isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")


def _split(name: str) -> tuple[str, str]:
    """The part that a name belongs to, and the name without wrappers."""
    words = [word for word in name.split(".") if word not in _ANYWHERE]
    labels = []
    while len(words) > 1 and not _CORE.match(".".join(words)):
        if words[0] in _LABELS:
            labels.append(_LABELS[words[0]])
        elif words[0] not in _LEADING:
            break
        words = words[1:]
    part = next((label for label in labels if label != "context"), labels[0] if labels else UNLABELLED)
    plain = ".".join(words)
    if part == UNLABELLED and plain.startswith(("predictor_", "mask_token")):
        part = "predictor"
    return part, plain


def family(names: Mapping[str, Any]) -> str:
    """What kind of model has such names, in words for messages: "; it looks like ..."; empty if unknown."""
    kind = next((words for words, pattern in _FAMILIES if any(re.search(pattern, name) for name in names)), "")
    return f"; it looks like {kind}" if kind else ""
