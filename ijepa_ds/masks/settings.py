"""Settings of the mask samplers, in their own file so that reading a configuration does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MasksConfig:
    """Multi-block masks."""

    sampler: str = "published"  # published | unbiased
    num_contexts: int = 1
    num_targets: int = 4
    context_scale: tuple[float, float] = (0.85, 1.0)  # share of the image's patches
    target_scale: tuple[float, float] = (0.15, 0.2)
    target_aspect: tuple[float, float] = (0.75, 1.5)  # height / width
    allow_overlap: bool = False  # may the context see the targets' patches
    min_keep: int = 10  # published: a target block has more patches than this; context: at least one more
    truncation_group: int = 128  # published: images cut to their shortest together, for any micro-batch
    context_tokens: int | None = None  # unbiased: patches kept a context; None: chosen from the other settings
