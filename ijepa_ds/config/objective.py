"""The sections `targets` and `objective`: what the predictor predicts, and terms of the loss beyond the published one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ijepa_ds.field_types import Ascending, Count, NotNegative, Probability, key


@dataclass(frozen=True, kw_only=True)
class TargetsConfig:
    """What the predictor predicts: representations of the target encoder (`docs/objective.md`)."""

    layers: Ascending[Count] | None = key(
        None,
        "blocks of the target encoder, from 1, whose outputs are the targets, each normalised; `null`: the encoder's output",
        later=True,
    )
    combine: Literal["concat", "mean"] = key(
        "concat", "several `layers`: side by side, so that the predictor's output is wider, or their mean", later=True
    )
    norm: Literal["layer", "tanh", "none"] = key(
        "layer", "of the targets: LayerNorm without parameters, the hyperbolic tangent of every value, or none", later=True
    )

    def width(self, encoder: int) -> int:
        """Values of one target, for an encoder of width `encoder`: the width of the predictor's output."""
        return encoder * (len(self.layers) if self.layers and self.combine == "concat" else 1)

    def depth(self, encoder: int) -> int:
        """Blocks that the target encoder runs in training, for an encoder of `encoder` blocks."""
        return self.layers[-1] if self.layers else encoder

    @property
    def is_published(self) -> bool:
        """Whether targets are those of the published runs."""
        return self.layers is None and self.norm == "layer"


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Terms of the loss beside the prediction of target blocks; all are off by default (`docs/objective.md`)."""

    context_weight: NotNegative = key(
        0.0, "weight of the loss on context patches, which falls with the distance to the target block; 0: none", later=True
    )
    context_warmup: Probability = key(0.0, "share of the run in which `context_weight` rises linearly from 0", later=True)
    variance_weight: NotNegative = key(
        0.0, "weight of the variance term on projected contexts, over the global batch; 0: none", later=True
    )
    covariance_weight: NotNegative = key(
        0.0, "weight of the covariance term on projected contexts, over the global batch; 0: none", later=True
    )
    projection: Count = key(256, "width of the projector in front of both terms", later=True)

    @property
    def spreads(self) -> bool:
        """Whether the loss has a term that keeps contexts apart, on their projections."""
        return self.variance_weight > 0 or self.covariance_weight > 0

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms of the loss, in the order of `ijepa.Output.terms`; none while the loss is the prediction alone."""
        own = ("context",) if self.context_weight > 0 else ()
        spread = ("variance", "covariance") if self.spreads else ()
        return ("prediction", *own, *spread) if own or spread else ()
