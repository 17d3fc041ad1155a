"""Reads and writes weights: runs, published checkpoints, timm, Hugging Face and our own exports; needs no DeepSpeed.

`open` detects the format of a path, `source` maps every format to the parameter names of `model.vit`, `encoder` builds
plain encoders, and `files` opens single files safely.
"""

from ijepa_ds.weights.encoder import load_encoder, read_encoder
from ijepa_ds.weights.facts import Facts, Transform, WeightsError
from ijepa_ds.weights.open import open_source
from ijepa_ds.weights.predictor import build_ijepa, build_predictor, masks_for
from ijepa_ds.weights.source import Source

__all__ = [
    "Facts",
    "Source",
    "Transform",
    "WeightsError",
    "build_ijepa",
    "build_predictor",
    "load_encoder",
    "masks_for",
    "open_source",
    "read_encoder",
]
