"""Weights in and out: runs, the published checkpoints, timm, Hugging Face and our own exports. Needs no DeepSpeed.

`open` recognises what a path is, `source` gives every format's values under the names of `vit`, `encoder` makes plain
encoders of them; `files` opens single files safely.
"""

from ijepa_ds.weights.encoder import load_encoder, read_encoder
from ijepa_ds.weights.facts import Facts, Transform, WeightsError
from ijepa_ds.weights.open import open_source
from ijepa_ds.weights.predictor import fill_all, fill_predictor, masks_for
from ijepa_ds.weights.source import Source

__all__ = [
    "Facts",
    "Source",
    "Transform",
    "WeightsError",
    "fill_all",
    "fill_predictor",
    "load_encoder",
    "masks_for",
    "open_source",
    "read_encoder",
]
