"""Settings of the mask samplers, in their own file so that reading a configuration does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ijepa_ds.field_types import Area, Count, Flag, Ordered, Positive, Whole, key


@dataclass(frozen=True, kw_only=True)
class MasksConfig:
    """Multi-block masks."""

    sampler: Literal["published", "unbiased"] = key(
        "published",
        "`published`: as in the published runs; `unbiased`: every patch can be drawn, nothing is cut in raster order",
    )
    num_contexts: Count = key(1, "contexts per image; all of them share one pass of the target encoder")
    num_targets: Count = key(4, "target blocks per image")
    context_scale: Ordered[Area] = key((0.85, 1.0), "share of the patches in a context block, before the targets are removed")
    target_scale: Ordered[Area] = key((0.15, 0.2), "share of the patches in a target block")
    target_aspect: Ordered[Positive] = key((0.75, 1.5), "height / width of a target block")
    allow_overlap: Flag = key(False, "whether a context may contain patches of the targets")
    min_keep: Whole = key(
        10,
        "`published`: a target block has more patches than this; a context at least one more",
        only_with="masks.sampler=published",
    )
    truncation_group: Count = key(
        128,
        "`published`: images whose lists are cut to the shortest together, for any micro-batch",
        only_with="masks.sampler=published",
    )
    context_tokens: Count | None = key(
        None,
        "`unbiased`: patches kept in a context; `null`: chosen from the other settings",
        only_with="masks.sampler=unbiased",
    )
