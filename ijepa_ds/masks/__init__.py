"""Multi-block masks: which patches the context encoder sees and which patches the predictor predicts."""

from ijepa_ds.masks.settings import MasksConfig  # the samplers need PyTorch: import them from `masks.sampler`

__all__ = ["MasksConfig"]
