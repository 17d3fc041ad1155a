"""ijepa_ds: a DeepSpeed scale-out toolkit for pretraining image joint-embedding predictive models (I-JEPA)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "load_encoder": ("ijepa_ds.weights", "load_encoder"),
    "load_config": ("ijepa_ds.config", "load_config"),
    "Config": ("ijepa_ds.config", "Config"),
}


def __getattr__(name: str) -> Any:
    """Import the public names on first access, so that importing the package stays cheap."""
    if name in _PUBLIC:
        module, attribute = _PUBLIC[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
