"""Plain encoders out of any weights: one process, no DeepSpeed, no other ranks."""

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

logger = logging.getLogger(__name__)
Network = TypeVar("Network", bound=nn.Module)
WHICH = ("target", "context", "untrained")


def load_encoder(path_or_name: str | Path, which: str | None = None, heads: int | None = None) -> tuple[Encoder, Transform]:
    """A frozen encoder, float32, on the CPU, in evaluation mode, and the transform that pictures need before it.

        encoder, transform = load_encoder("runs/vith14")
        tokens = encoder(transform(image)[None])  # [1, N, D]; tokens.mean(dim=1) is the feature that is evaluated

    Args:
        path_or_name: whatever `open_source` takes; or the name of a repository in the local Hugging Face cache, such as
            facebook/ijepa_vith14_1k (nothing is downloaded).
        which: `target` (the EMA; what the paper evaluates), `context`, or `untrained` (the start values); None: the target,
            or else the one encoder there is.
        heads: attention heads, where the file does not say and the size is not one of `config.sizes.SIZES`.

    Raises:
        WeightsError: nothing known is there, or it is not what it seems.
        CheckpointError: a run's checkpoints are broken.
    """
    path = Path(path_or_name)
    encoder, facts = read_encoder(path if path.exists() else _in_cache(str(path_or_name)), which, heads)
    return encoder, facts.transform


def read_encoder(path: str | Path, which: str | None = None, heads: int | None = None) -> tuple[Encoder, Facts]:
    """The encoder of `load_encoder`, and everything known about it."""
    if which not in (None, *WHICH):
        raise WeightsError(f"which: expected {', '.join(WHICH)}, got {which!r}")
    source = open_source(path, heads, weights=which != "untrained")
    if which != "untrained" and not source.parts:
        raise WeightsError(f"{path}: this run has no checkpoint yet")
    which = which if which == "untrained" else source.choose(which)
    for note in source.notes:
        logger.info("%s: %s", source.path, note)
    encoder = fill(source, which)
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


def fill(source: Source, part: str) -> Encoder:
    """The encoder `part` of a source; `untrained`: the start values of its run's seed (0 without a run)."""
    encoder = Encoder(source.size, source.patch_size, source.grid, position_grid=source.position_grid)
    return fill_network(encoder, source, "encoder", None if part == "untrained" else source.parts[part])


def fill_network(network: Network, source: Source, label: str, tensors: Mapping[str, Tensor] | None) -> Network:
    """Set the parameters of an encoder or a predictor, and freeze it.

    Args:
        network: is changed.
        source: its LayerNorm epsilon and seed are used.
        label: `encoder` or `predictor`, for the start values.
        tensors: by parameter name; None: the start values of the run's seed (0 without a run).
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
    """The folder of a repository that was downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise WeightsError(
            f"{name}: no such file or folder, and no such repository in the local Hugging Face cache (nothing is downloaded "
            f"here; fetch it first: hf download {name})"
        ) from error
