"""Builds plain encoders from any weights, in one process and without DeepSpeed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ijepa_ds.model.blocks import LayerNorm
from ijepa_ds.model.vit import Encoder, initial_value
from ijepa_ds.weights.facts import Facts, Transform, WeightsError
from ijepa_ds.weights.open import open_source
from ijepa_ds.weights.source import Source
from ijepa_ds.weights.start import open_start

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)
WHICH = ("target", "context", "untrained")


def load_encoder(path_or_name: str | Path, which: str | None = None, heads: int | None = None) -> tuple[Encoder, Transform]:
    """Load a frozen encoder (float32, CPU, evaluation mode) and its image transform.

        encoder, transform = load_encoder("runs/vith14")
        tokens = encoder(transform(image)[None])  # [1, N, D]; tokens.mean(dim=1) is the feature that is evaluated

    Args:
        path_or_name: any path that `open_source` accepts; or a repository in the local Hugging Face cache, such as
            facebook/ijepa_vith14_1k (nothing is downloaded).
        which: `target` (the EMA; what the paper evaluates), `context`, or `untrained` (start values); None: the target,
            or the only encoder.
        heads: attention heads, where the file does not say and the size is not in `config.sizes.SIZES`.

    Raises:
        WeightsError: the format is not known, or the file does not match it.
        CheckpointError: a run without a usable checkpoint.
    """
    path = Path(path_or_name)
    encoder, facts = read_encoder(path if path.exists() else _in_cache(str(path_or_name)), which, heads)
    return encoder, facts.transform


def read_encoder(path: str | Path, which: str | None = None, heads: int | None = None) -> tuple[Encoder, Facts]:
    """Load an encoder as `load_encoder` does, with its metadata."""
    if which not in (None, *WHICH):
        raise WeightsError(f"which: expected {', '.join(WHICH)}, got {which!r}")
    source = open_source(path, heads, weights=which != "untrained")
    if which != "untrained" and not source.parts:
        inner = Path(path) / "run"  # `ijepa-ds init` writes a configuration whose run is one folder below
        hint = f"; did you mean {inner}?" if (inner / "config.yaml").is_file() else ""
        raise WeightsError(f"{path}: this run has no checkpoint yet{hint}")
    which = which if which == "untrained" else source.choose(which)
    for note in source.notes:
        logger.info("%s: %s", source.path, note)
    encoder = build_encoder(source, which)
    facts = Facts(
        source=str(source.path),
        kind=source.kind,
        which=which,
        step=0 if which == "untrained" else source.step,
        size=source.size,
        patch_size=source.patch_size,
        image_size=source.grid * source.patch_size,
        position_grid=source.position_grid,
        mean=source.mean,
        std=source.std,
        eps=source.eps,
        config=source.config,
        notes=source.notes,
    )
    return encoder, facts


def build_encoder(source: Source, part: str) -> Encoder:
    """Build the encoder `part` of a source.

    `untrained`: what the run's target encoder started from: the weights of `model.init_from` as they are now, or initial
    values of the run's seed (0 without a run).
    """
    encoder = Encoder(source.size, source.patch_size, source.grid, position_grid=source.position_grid)
    tensors = None if part == "untrained" else source.parts[part]
    if part == "untrained" and source.config and source.config.model.init_from:
        start = open_start(source.config)
        tensors = {name: start.teacher(name) for name, _ in encoder.named_parameters()}
    return fill_network(encoder, source, "encoder", tensors)


def fill_network(network: Network, source: Source, label: str, tensors: Mapping[str, Tensor] | None) -> Network:
    """Set the parameters of an encoder or a predictor, and freeze it.

    Args:
        network: is changed.
        source: its LayerNorm epsilon and seed are used.
        label: `encoder` or `predictor`, for the initial values.
        tensors: by parameter name; None: the initial values of the run's seed (0 without a run).
    """
    for module in network.modules():
        if isinstance(module, LayerNorm):
            module.eps = source.eps
    seed = source.config.run.seed if source.config else 0
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if tensors is None:
                parameter.copy_(initial_value(f"{label}.{name}", parameter.shape, seed, source.size.layer_scale))
            else:
                parameter.copy_(tensors[name])
    return network.eval().requires_grad_(False)


def _in_cache(name: str) -> Path:
    """Folder of a repository in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise WeightsError(
            f"{name}: no such file or folder, and no such repository in the local Hugging Face cache (nothing is downloaded "
            f"here; fetch it first: hf download {name})"
        ) from error
